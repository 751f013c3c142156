"""Texts that are said in pieces: nothing is left out, voices are carried over, times are kept."""

from dataclasses import replace

import pytest
import torch

from rvqlm.codecs.registry import load_codec
from rvqlm.condition_info import ConditionInfo
from rvqlm.frontends.symbols import SymbolTable
from rvqlm.frontends.text import TextFrontEnd, TextSettings
from rvqlm.generation.sampling import SamplingConfig, SpeechConfig
from rvqlm.inference.conditions import ConditionArgs, Given
from rvqlm.inference.generate import OutputArgs, SampleRequest, generate
from rvqlm.inference.long_texts import Chain, divided, frames_needed
from rvqlm.inference.prompts import Prompt, PromptArgs, read_prompts
from rvqlm.models.factory import build_model

RATE = 50.0
TEXT = "abba cab. bad cab, a bed and a head. [pause 0.3s] fed!"
FRONT_END = TextFrontEnd(
    TextSettings("chars", lowercase=True), SymbolTable.of(["<space>", *".,!", *"abcdefghn"])
)
CODEC = load_codec("spectral", num_codebooks=2)
SAMPLING = SamplingConfig(temperature=0.8)


def model_of(name, aligned=True, conditions=("text",)):
    torch.manual_seed(3)
    info = ConditionInfo("text", (14,), 4.0, FRONT_END.info(4.0).settings, aligned=aligned)
    config = {"decoder_dim": 16, "nhead": 2, "num_decoder_layers": 1, "conditions": conditions}
    infos = {"text": info, "prompt": ConditionInfo.of_codes("prompt", CODEC.info)}
    model = build_model(name, {**config, "fusion": "spread"}, CODEC.info, infos)
    if model.duration_head is not None:
        torch.nn.init.normal_(model.duration_head.linear.weight, std=2.0)
        model.duration_head.linear.bias.data[12:] = -99.0  # none of them long
    return model.eval()


def prompts_of(model, *texts):
    args = ConditionArgs(text=texts)
    return read_prompts(PromptArgs(), args, model, CODEC, 10**6, 0)


def part(model, prompts, share=0.6) -> int:
    """Frames that are too few for any of the texts."""
    return int(min(frames_needed(model, [p.given for p in prompts], SpeechConfig())) * share)


def made(model, prompts, seconds, **output):
    request = SampleRequest(prompts, OutputArgs(seconds=seconds, **output), SAMPLING)
    return list(generate(model, CODEC, request, {}))


@pytest.mark.parametrize("name", ["codec-lm", "masked", "valle"])
def test_all_of_a_text_is_said_at_the_times_that_are_kept(name):
    model = model_of(name)
    texts = (TEXT, TEXT.replace(" [pause 0.3s]", ""))
    prompts = prompts_of(model, *texts)
    seconds = part(model, prompts) / RATE
    samples = made(model, prompts, seconds)
    names = FRONT_END.info(4.0).settings["symbols"]
    for sample, text in zip(samples, texts):
        about = sample.about
        said = "".join(name for name, *_ in about["alignment"])
        ids = FRONT_END.encode(text.replace("[pause 0.3s]", "")).tolist()
        assert said == "".join(names[i] for i in ids)
        begins = [begin for _, begin, _ in about["alignment"]]
        assert begins == sorted(begins)
        # the pieces are the text, and lie one behind the other
        assert " ".join(words for words, *_ in about["sentences"]) == text
        edges = [edge for _, *edges in about["sentences"] for edge in edges]
        assert edges[0] == 0 and edges[1:-1:2] == edges[2::2] and edges[-1] == about["seconds"]
        assert edges[-1] * RATE == pytest.approx(len(sample.codes)) and edges[-1] > seconds
        assert about["alignment"][-1][2] == pytest.approx(edges[-1], abs=0.02 + seconds)
    # alone or beside others, whatever the batch
    (alone,) = made(model, prompts[:1], seconds, batch_size=1)
    assert torch.equal(alone.codes, samples[0].codes)
    assert alone.about["sentences"] == samples[0].about["sentences"]


def test_a_pause_between_two_sentences_is_as_long_as_it_says():
    model = model_of("codec-lm")
    with torch.no_grad():  # white space and punctuation last nothing by themselves
        model.duration_head.linear.weight.zero_()
        model.duration_head.linear.bias.zero_()
        model.duration_head.linear.bias[5] = 9.0
    prompts = prompts_of(model, "abba. [pause 0.4s] cab. [pause 0.2s] bad.")
    (sample,) = made(model, prompts, 0.5)
    assert len(sample.about["sentences"]) >= 3
    symbols = sample.about["alignment"]
    for before, after, pause in (("a", "c", 0.4), ("b", "b", 0.2)):
        points = [n for n, (name, *_) in enumerate(symbols) if name == "."]
        place = points[0] if pause == 0.4 else points[1]
        assert (symbols[place - 1][0], symbols[place + 2][0]) == (before, after)
        gap = symbols[place + 2][1] - symbols[place - 1][2]
        assert gap == pytest.approx(pause, abs=0.12)


def test_a_sentence_begins_with_the_tail_of_what_was_said():
    model = model_of("codec-lm")
    (prompt,) = prompts_of(model, TEXT)
    longest = part(model, [prompt], 0.9)
    (prompt,) = divided([prompt], model, longest, SpeechConfig())
    assert prompt.given.pieces[0].words == "abba cab."
    chain = Chain(prompt, model, 66)  # of which the tail is a third
    number, first = chain.take()
    assert not chain.ready() and number == 0 and not len(first.codes)  # the next waits for it
    codes = torch.arange(2 * 60).view(60, 2)
    times = torch.arange(9)[:, None] * 5 + torch.tensor([0.0, 5.0])
    chain.add(0, codes, times, "eos")
    number, second = chain.take()
    # what follows the text is no part of it, and the tail begins with a word
    assert len(chain.said[0].codes) == 45
    assert FRONT_END.decode(second.given.values["text"][:, 0]).startswith("cab. ")
    assert torch.equal(second.codes, codes[25:45])
    assert second.given.times[:4].tolist() == (times[5:] - 25).tolist()
    assert bool(second.given.times[4:].isnan().all()) and second.given.known == 4


def test_with_a_voice_sentences_start_from_it_alone():
    model = model_of("codec-lm", conditions=("text", "prompt"))
    voice = torch.randint(CODEC.info.codebook_size, (20, 2))
    prompt = prompts_of(model, TEXT)[0]
    prompt = replace(
        prompt, given=replace(prompt.given, values={**prompt.given.values, "prompt": voice})
    )
    longest = part(model, [prompt], 0.4)
    (sample,) = made(model, [prompt], longest / RATE)
    assert len(sample.about["sentences"]) >= 3 and sample.about["batch_size"] >= 3  # together
    (prompt,) = divided([prompt], model, longest, SpeechConfig())
    chain = Chain(prompt, model, longest)
    while chain.ready():
        _, piece = chain.take()
        assert not len(piece.codes) and torch.equal(piece.given.values["prompt"], voice)


def test_without_known_durations_a_sentence_follows_the_one_before():
    model = model_of("codec-lm", aligned=False)
    (prompt,) = prompts_of(model, "abba cab. bad cab.")
    assert frames_needed(model, [prompt.given], SpeechConfig()) == [18 * 4.0]
    (sample,) = made(model, [prompt], 1.0, min_seconds=0.0)
    assert [words for words, *_ in sample.about["sentences"]] == ["abba", "cab.", "bad", "cab."]
    assert "alignment" not in sample.about


def test_what_stays_whole():
    model = model_of("codec-lm")
    (prompt,) = prompts_of(model, TEXT)
    codes = torch.zeros(5, 2, dtype=torch.int64)
    told = replace(prompt.given, times=torch.zeros(len(prompt.given.values["text"]), 2))
    for whole in (replace(prompt, codes=codes), replace(prompt, given=told), Prompt(codes, "a")):
        assert not divided([whole], model, 5, SpeechConfig())[0].given.pieces
    assert not divided([prompt], model, 10**6, SpeechConfig())[0].given.pieces
    frames = part(model, [prompt])
    (cut,) = made(model, [prompt], frames / RATE, divide_texts=False)
    assert len(cut.codes) == frames and "sentences" not in cut.about
    assert cut.warnings[0].startswith("cut: its text needs")


def test_symbols_of_a_recording_are_divided_as_they_are():
    """Of a cut the symbols are known, not the text: every one is in a piece, but for the white
    space between two of them."""
    model = model_of("codec-lm")
    ids = torch.from_numpy(FRONT_END.encode("abba cab. bad cab, a bed.")).long()
    given = Given({"text": ids[:, None]}, {"text": "abba cab. bad cab, a bed."})
    given.times = torch.full((len(ids), 2), torch.nan)  # those of the recording, none of them told
    prompt = Prompt(torch.empty(0, 2, dtype=torch.int64), "conditioned-x", "x", given=given)
    (prompt,) = divided([prompt], model, part(model, [prompt]), SpeechConfig())
    pieces = [FRONT_END.decode(p.text.ids[:, 0]) for p in prompt.given.pieces]
    assert len(pieces) > 1 and " ".join(pieces) == "abba cab. bad cab, a bed."
    (sample,) = made(model, [prompt], part(model, [prompt]) / RATE)
    assert [words for words, *_ in sample.about["sentences"]] == pieces
