"""A blind listening test: one page of clips whose systems only its key tells.

The page holds clips under random names, in pairs (which is better?) or alone (how good is it?), and
keeps answers in the browser until the rater saves them as a file. The key, a file beside the page
that stays with whoever made it, says which clip is of which system.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Literal, TypedDict

import numpy as np
from msgspec import Meta

from rvqlm.audio.loudness import Meter, gain_to
from rvqlm.errors import UserError
from rvqlm.files import Digest, Name
from rvqlm.reports.aligned import Aligned, Prompt
from rvqlm.reports.clips import Clip, data_uri, encode_flac

Kind = Literal["preference", "rating"]
QUESTIONS: dict[Kind, str] = {
    "preference": "Which of the two sounds better?",
    "rating": "How good does it sound?",
}
RECORDINGS = {"original": "recording", "codec": "recording through the codec"}
"""Names of what stands beside the systems."""
LOUDNESS, PEAK = -23.0, -1.0  # LUFS (EBU R 128), dBFS


class KeyClip(TypedDict):
    system: Name
    name: str
    """Of its file, or what it is of a recording."""


class KeyTrial(TypedDict):
    """A question, in the order of the page: the first clip is the left one."""

    id: Name
    item: Name
    clips: Annotated[list[KeyClip], Meta(min_length=1, max_length=2)]


class Key(TypedDict):
    """The key of a page, ``PAGE.key.json``."""

    test: Digest
    kind: Kind
    question: str
    trials: Annotated[list[KeyTrial], Meta(min_length=1)]


@dataclass
class _Heard:
    """A clip of a trial."""

    system: str
    clip: Clip


def make_test(
    aligned: Aligned, kind: Kind, question: str, seed: int, texts: bool, recordings: bool
) -> tuple[dict, Key]:
    """Content of the page, and its key.

    Of each pair of systems every second item has the one at the left and every second the other,
    in random order; the order of trials is drawn anew for each rater, in the page.

    :param aligned: after `Aligned.listen`.
    :param question: above the answers; empty: that of `QUESTIONS`.
    :param texts: whether what is to be said is shown.
    :param recordings: whether recordings are among what is judged.
    :raises UserError: nothing to ask.
    """
    rng = np.random.default_rng(seed)
    asked = list(_trials(aligned, kind, recordings, rng))
    if not asked:
        what = "made of the same prompt" if kind == "preference" else "of a prompt"
        raise UserError(f"no samples {what} in {', '.join(row.exp_dir for row in aligned.rows)}")
    asked = [asked[i] for i in rng.permutation(len(asked))]
    names: dict[int, str] = {}  # of clips by identity: one that is in several trials is there once
    clips: dict[str, bytes] = {}
    trials, key_trials = [], []
    for number, heard in asked:
        prompt = aligned.prompts[number]
        for one in heard:
            if id(one.clip) not in names:
                names[id(one.clip)] = name = _random_name(rng)
                clips[name] = encode_flac(even(one.clip), one.clip.sampling_rate)
        name = _random_name(rng)
        trials.append(
            {
                "id": name,
                "text": _words(prompt) if texts else None,
                "clips": [names[id(one.clip)] for one in heard],
            }
        )
        key_trials.append(
            {
                "id": name,
                "item": f"{number} {prompt.kind} {prompt.source or prompt.text or ''}".strip(),
                "clips": [{"system": one.system, "name": one.clip.title} for one in heard],
            }
        )
    question = question or QUESTIONS[kind]
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in clips.items()}
    asked_of_all = [kind, question, trials, digests]
    test = hashlib.sha256(json.dumps(asked_of_all, sort_keys=True).encode()).hexdigest()
    content = {
        "test": test,
        "kind": kind,
        "question": question,
        "trials": trials,
        "clips": {name: data_uri(data, "audio/flac") for name, data in clips.items()},
    }
    return content, {"test": test, "kind": kind, "question": question, "trials": key_trials}


def _trials(
    aligned: Aligned, kind: Kind, recordings: bool, rng: np.random.Generator
) -> Iterator[tuple[int, list[_Heard]]]:
    """Number of the prompt and what is heard, the left one first."""
    systems = [row.name for row in aligned.rows] + [*RECORDINGS.values()] * recordings
    of_prompt = [_of_prompt(aligned, prompt, recordings) for prompt in aligned.prompts]
    if kind == "rating":
        for number, heard in enumerate(of_prompt):
            yield from ((number, [one]) for one in heard.values())
        return
    for first, second in combinations(systems, 2):
        both = [
            (number, [heard[first], heard[second]])
            for number, heard in enumerate(of_prompt)
            if first in heard and second in heard
        ]
        # as many each way round; of an odd number one more, of which system is chance
        swapped = (np.arange(len(both)) + rng.integers(2)) % 2 == 0
        for (number, pair), swap in zip(both, rng.permutation(swapped)):
            yield number, pair[::-1] if swap else pair


def _of_prompt(aligned: Aligned, prompt: Prompt, recordings: bool) -> dict[str, _Heard]:
    """The first clip of each system."""
    found = {
        row.name: _Heard(row.name, clips[0])
        for row, clips in zip(aligned.rows, prompt.clips)
        if clips
    }
    if recordings:
        found |= {RECORDINGS[c.kind]: _Heard(RECORDINGS[c.kind], c) for c in prompt.references}
    return found


def _words(prompt: Prompt) -> str | None:
    """What was to be said, where it is known in words."""
    given = [about.get("conditions") or {} for of in prompt.samples for _, about in of]
    symbols = any(prompt.text == conditions.get("phonemes") for conditions in given)
    return None if symbols else prompt.text


def _random_name(rng: np.random.Generator) -> str:
    return rng.bytes(5).hex()


def even(clip: Clip) -> np.ndarray:
    """(C, S) audio of a clip at the loudness of all others, as far as its peak lets it."""
    meter = Meter(clip.sampling_rate)
    audio = np.nan_to_num(clip.audio)
    meter.add(audio)
    gain, _ = gain_to(meter.loudness(), meter.peak, LOUDNESS, PEAK)
    return audio * 10 ** (gain / 20)
