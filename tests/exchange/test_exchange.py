"""Exports and imports: a token directory comes back as it was, and lhotse reads what we write."""

import gzip
import io
import json
import shutil
import tarfile
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from exchange_fixtures import AWKWARD, codec_of, contents, items_of, write
from lhotse import CutSet
from token_fixtures import INFO, make_tokens

from rvqlm.codec_info import CodecInfo
from rvqlm.data.index import TokenDataset, build_index, read_sidecar
from rvqlm.data.splits import SplitConfig, split_manifest
from rvqlm.data.stats import check_tokens
from rvqlm.data.store import frames_to_seconds
from rvqlm.errors import UserError
from rvqlm.exchange.codec import CodecArgs, is_unknown, load_codec_for
from rvqlm.exchange.convert import export_npq, export_tokens
from rvqlm.exchange.convert import import_tokens as import_source
from rvqlm.exchange.directory import read_items, write_token_dir
from rvqlm.exchange.items import Skipped, TokenItem, TokenSource
from rvqlm.exchange.names import Names, find_files, left_out, path_for_id
from rvqlm.exchange.npq import read_npq, write_npq
from rvqlm.exchange.npy import write_npy
from rvqlm.exchange.source import open_files, open_tokens


def import_tokens(inputs, out_dir, args, order=None):
    return import_source(open_tokens(inputs, order=order), out_dir, args)


def import_npq(inputs, out_dir, args):
    return import_source(open_files(inputs, ".npq"), out_dir, args)


BY_NAME = CodecArgs(codec_name="some/codec", sampling_rate=16000, hop=320, codebook_size=64)


# --------------------------------------------------------------------------- token directories


def test_a_written_directory_is_a_token_directory(tmp_path):
    write(tmp_path / "tokens")
    side = read_sidecar(tmp_path / "tokens")
    assert not check_tokens(tmp_path / "tokens", side) and side["num_cuts"] == len(AWKWARD)
    assert CodecInfo.from_dict(side["codec"]) == INFO
    cuts = CutSet.from_file(tmp_path / "tokens/cuts.jsonl.gz")
    for cut, item in zip(cuts, items_of()):
        assert (cut.load_features() == item.codes).all() and cut.supervisions[0].speaker
    split_manifest(SplitConfig(tmp_path / "tokens", valid=1, test=1))
    for split in ("train", "valid", "test"):
        build_index(tmp_path / "tokens", split)
    assert len(TokenDataset.open(tmp_path / "tokens", "valid"))


def test_shards_roll_over_and_bytes_follow_from_the_input(tmp_path):
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        write_token_dir(str(folder / "t"), INFO, items_of(), {}, cuts_per_shard=3)
    files = sorted(p.name for p in (tmp_path / "a/t/codes").iterdir())
    assert files == ["shard-00000.rvq", "shard-00001.rvq", "shard-00002.rvq"]
    for p in (tmp_path / "a/t/codes").iterdir():
        assert p.read_bytes() == (tmp_path / "b/t/codes" / p.name).read_bytes()
    assert contents(tmp_path / "a/t") == contents(tmp_path / "b/t")


def test_what_is_skipped_is_listed(tmp_path):
    nothing = TokenItem("empty", np.zeros((0, 3), np.int16))
    damaged = TokenItem("damaged", np.array([[1, 2, 3], [1, 2, 64]]))
    again = TokenItem("plain", np.zeros((2, 3), int))
    segment = TokenItem("segment", np.zeros((2, 3), int), supervisions=[{"id": "s", "stort": 0}])
    length = TokenItem("length", np.zeros((2, 3), int), custom={"num_samples": []})
    bad = [nothing, damaged, again, segment, length]
    items = [Skipped("x", "x.npq", "broken"), *items_of(), *bad]
    written = write_token_dir(str(tmp_path / "t"), INFO, items, {})
    lines = [json.loads(x) for x in (tmp_path / "t/skipped.jsonl").read_text().splitlines()]
    assert [x["id"] for x in lines] == ["x", "empty", "damaged", "plain", "segment", "length"]
    reasons = ["broken", "no frames", "codes from 1 to 64", "two items have"]
    for line, reason in zip(lines, [*reasons, *["its description is damaged: "] * 2]):
        assert line["reason"].startswith(reason)
    assert written.skipped == 6 and written.first_skipped.path == "x.npq"
    assert [g[0] for g in contents(tmp_path / "t")] == AWKWARD


@pytest.mark.parametrize(
    "items, message",
    [
        ([TokenItem("a", np.full((2, 3), 64))], "a: codes from 64 to 64, codec test has 64"),
        ([TokenItem("a", np.full((2, 3), -1))], "a: codes from -1"),
        ([TokenItem("a", np.zeros((2, 4), int))], "codes of codec test are integers .T, 3."),
        ([TokenItem("a", np.zeros((2, 3)))], "float64 array"),
        ([], "nothing to make tokens of"),
        ([Skipped("a", "a.npq", "broken")], "the first of 1, a.npq: broken"),
    ],
)
def test_a_refused_directory_leaves_nothing(tmp_path, items, message):
    with pytest.raises(UserError, match=message):
        write_token_dir(str(tmp_path / "t"), INFO, items, {})
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    write(tmp_path / "t")
    with pytest.raises(UserError, match="not empty"):
        write(tmp_path / "t")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file of that name"):
        write(tmp_path / "file")


def test_a_moved_directory_is_read_where_it_is(tmp_path):
    write(tmp_path / "t")
    before = contents(tmp_path / "t")
    (tmp_path / "t").rename(tmp_path / "moved")
    assert contents(tmp_path / "moved") == before


def test_windows_are_their_own_frames(tmp_path):
    (item,) = items_of(ids=["a"], frames=[40])
    write(tmp_path / "t", [item])
    cut = next(iter(CutSet.from_file(tmp_path / "t/cuts.jsonl.gz")))
    second = [frames_to_seconds(n, INFO) for n in range(41)]
    windows = [cut.truncate(offset=second[a], duration=second[n]) for a, n in ((0, 10), (25, 15))]
    cuts = CutSet.from_cuts(w.with_id(f"w{n}") for n, w in enumerate(windows))
    cuts.to_file(tmp_path / "t/cuts_windows.jsonl.gz")
    first, last = read_items(tmp_path / "t/cuts_windows.jsonl.gz", INFO, tmp_path / "t")
    assert (first.codes == item.codes[:10]).all() and (last.codes == item.codes[25:]).all()
    assert first.custom["num_samples"] == 10 * INFO.hop
    assert last.custom["num_samples"] == 15 * INFO.hop - 3
    assert first.custom["ends_recording"] is False and "ends_recording" not in last.custom
    for form in ("shar", "npy"):
        export_tokens(tmp_path / "t", tmp_path / form, form, "windows")
        import_tokens([tmp_path / form], str(tmp_path / f"back-{form}"), CodecArgs())
        got = contents(tmp_path / f"back-{form}")
        assert [g[1] for g in got] == [item.codes[:10].tolist(), item.codes[25:].tolist()]
        assert [g[6]["num_samples"] for g in got] == [3200, 4797]


def test_windows_of_scales_are_refused(tmp_path):
    (item,) = items_of(ids=["a"], frames=[40])
    item.custom["scales"] = [1.0]
    write(tmp_path / "t", [item])
    cut = next(iter(CutSet.from_file(tmp_path / "t/cuts.jsonl.gz")))
    window = cut.truncate(duration=frames_to_seconds(10, INFO))
    CutSet.from_cuts([window]).to_file(tmp_path / "t/cuts_w.jsonl.gz")
    with pytest.raises(UserError, match="window of a recording whose codec stores scales"):
        list(read_items(tmp_path / "t/cuts_w.jsonl.gz", INFO))


# --------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("form", ["shar", "npy"])
@pytest.mark.parametrize("size, dtype", [(64, "int16"), (65536, "uint16"), (1 << 20, "uint32")])
def test_round_trip(tmp_path, form, size, dtype):
    info = replace(INFO, codebook_size=size)
    write(tmp_path / "t", info=info)
    before = contents(tmp_path / "t")
    assert before[0][2] == dtype and max(map(max, before[2][1])) == size - 1
    count, splits = export_tokens(tmp_path / "t", tmp_path / "out", form, shard_size=3)
    assert (count, splits) == (len(AWKWARD), [])
    import_tokens([str(tmp_path / "out")], str(tmp_path / "back"), CodecArgs())
    assert contents(tmp_path / "back") == before
    assert codec_of(tmp_path / "back") == codec_of(tmp_path / "t")
    cuts = [CutSet.from_file(tmp_path / d / "cuts.jsonl.gz") for d in ("t", "back")]
    for a, b in zip(*cuts):  # as lhotse compares them
        a.features.storage_path = b.features.storage_path = ""
        assert a == b


@pytest.mark.parametrize("form", ["shar", "npy"])
def test_round_trip_with_splits(tmp_path, form):
    write(tmp_path / "t", splits=True)
    (tmp_path / "t/audio_cuts.jsonl.gz").write_bytes(gzip.compress(b'{"id": "a"}\n'))
    assert export_tokens(tmp_path / "t", tmp_path / "out", form)[1] == ["train", "test"]
    import_tokens([tmp_path / "out"], str(tmp_path / "back"), CodecArgs())
    for splits in (["train"], ["test"], ["train", "test"], [None]):
        assert contents(tmp_path / "back", splits) == contents(tmp_path / "t", splits)
    audio = (tmp_path / "back/audio_cuts.jsonl.gz").read_bytes()
    assert audio == (tmp_path / "t/audio_cuts.jsonl.gz").read_bytes()
    build_index(tmp_path / "back", "test")

    export_tokens(tmp_path / "t", tmp_path / "one", form, "test")
    import_tokens([tmp_path / "one"], str(tmp_path / "only"), CodecArgs())
    assert contents(tmp_path / "only") == contents(tmp_path / "t", ["test"])
    export_tokens(tmp_path / "t", tmp_path / "all", form, "all")
    import_tokens([tmp_path / "all"], str(tmp_path / "whole"), CodecArgs())
    assert contents(tmp_path / "whole") == contents(tmp_path / "t")
    assert not (tmp_path / "whole/cuts_test.jsonl.gz").exists()


def test_shar_is_lhotses(tmp_path):
    write(tmp_path / "t", splits=True)
    export_tokens(tmp_path / "t", tmp_path / "out", "shar", shard_size=3)
    cuts = CutSet.from_shar(in_dir=tmp_path / "out/train")
    for cut, item in zip(cuts, items_of(), strict=False):
        codes = cut.load_features()
        assert codes.dtype == np.int16 and (codes == item.codes).all()
        assert (cut.start, cut.num_frames) == (0, len(item.codes))
        assert cut.custom["num_samples"] == item.custom["num_samples"]
        assert cut.supervisions[0].text == "a “text”"


def test_npy_is_numpys(tmp_path):
    write(tmp_path / "t")
    export_tokens(tmp_path / "t", tmp_path / "out", "npy")
    lines = [json.loads(x) for x in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    assert [x["id"] for x in lines] == AWKWARD
    for line, item in zip(lines, items_of()):
        codes = np.load(tmp_path / "out" / line["path"])
        assert codes.dtype == np.int16 and (codes == item.codes).all()
        assert line["num_samples"] == item.custom["num_samples"] and line["codec"] == "test"
        assert line["text"] == "a “text”" and line["fingerprint"] == INFO.fingerprint


def test_a_stale_split_is_not_exported(tmp_path):
    make_tokens(tmp_path / "t", [5] * 8, split=None)
    split_manifest(SplitConfig(tmp_path / "t", 1, 1, by="recording"))
    with gzip.open(tmp_path / "t/cuts.jsonl.gz", "at") as file:
        file.write("\n")
    with pytest.raises(UserError, match="has changed since it was split"):
        export_tokens(tmp_path / "t", tmp_path / "out", "npy")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "split, form, message",
    [("dev", "npy", "no cuts_dev.jsonl.gz"), ("dev", "shar", "its splits: train, test")],
)
def test_a_split_that_is_not_there(tmp_path, split, form, message):
    write(tmp_path / "t", splits=True)
    with pytest.raises(UserError, match=message):
        export_tokens(tmp_path / "t", tmp_path / "out", form, split)
    assert not (tmp_path / "out").exists()


def test_ids_that_no_tar_holds(tmp_path):
    write(tmp_path / "t", items_of(ids=["a//b", "../../up", "/abs", "x" * 300]))
    before = contents(tmp_path / "t")
    with pytest.raises(UserError, match=r"'a//b'.*--format npy"):
        export_tokens(tmp_path / "t", tmp_path / "shar", "shar")
    export_tokens(tmp_path / "t", tmp_path / "deep/er/npy", "npy")
    assert [p.name for p in tmp_path.iterdir()] in (["t", "deep"], ["deep", "t"])
    import_tokens([tmp_path / "deep/er/npy"], str(tmp_path / "back"), CodecArgs())
    assert contents(tmp_path / "back") == before


def test_a_shar_folder_that_is_damaged(tmp_path):
    write(tmp_path / "t")
    export_tokens(tmp_path / "t", tmp_path / "out", "shar")
    tar = tmp_path / "out/all/features.000000.tar"
    whole = tar.read_bytes()
    with tarfile.open(tar) as file:
        members = file.getmembers()
    for size in (0, 100, members[4].offset, members[4].offset + 300, members[5].offset):
        tar.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"features.000000.tar"):
            import_tokens([tmp_path / "out"], str(tmp_path / "back"), CodecArgs())
        assert not (tmp_path / "back").exists()
    tar.unlink()
    with pytest.raises(UserError, match=r"1 file cuts.*and 0 features"):
        import_tokens([tmp_path / "out"], str(tmp_path / "back"), CodecArgs())


def test_sizes_are_checked_before_memory_is_taken(tmp_path):
    """Members and arrays that claim more than there is; the rest of a Shar folder is read."""
    write(tmp_path / "t", items_of(ids=["a", "b", "c"]))
    export_tokens(tmp_path / "t", tmp_path / "out", "shar")
    tar = tmp_path / "out/all/features.000000.tar"
    with tarfile.open(tar) as file:
        parts = [(m.name, file.extractfile(m).read()) for m in file.getmembers()]
    name, whole = parts[2]
    assert name == "b.npy" and b"(7, 3)" in whole

    def pack(data, path=tar, mode="w", claims=None):
        with tarfile.open(path, mode) as file:
            for name, content in [*parts[:2], ("b.npy", data), *parts[3:]]:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
                if claims and name == "b.npy":  # the header alone
                    member.size = claims
                    file.fileobj.write(member.tobuf(tarfile.GNU_FORMAT))
                    return

    back = str(tmp_path / "back")
    huge = whole.replace(b"(7, 3), }" + b" " * 20, b"(7000000000, 3), }".ljust(29))
    for data in (
        huge,
        whole.replace(b"(7, 3)", b"(9, 3)"),
        whole[:-1],
        b"",
        np.float32(1).tobytes(),
    ):
        pack(data)
        tracemalloc.start()
        written, _ = import_tokens([tmp_path / "out"], back, CodecArgs())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (written.num_cuts, written.skipped) == (2, 1) and peak < 10_000_000
        assert written.first_skipped.id == "b" and "has no tokens" in written.first_skipped.reason
        shutil.rmtree(back)
    pack(whole, claims=40 << 30)
    with pytest.raises(UserError, match=r"features.000000.tar, item 2: .*claims 42,949,672,960 b"):
        import_tokens([tmp_path / "out"], back, CodecArgs())
    tar.unlink()  # whose size says nothing
    pack(whole, tar.with_suffix(".tar.gz"), "w:gz", claims=40 << 30)
    with pytest.raises(UserError, match=r"features.000000.tar.gz, item 2: .*claims 42,949,672"):
        import_tokens([tmp_path / "out"], back, CodecArgs())


def test_a_damaged_array_costs_itself_alone(tmp_path):
    folder = export(tmp_path)
    broken = folder / "codes/plain.npy"
    broken.write_bytes(broken.read_bytes()[:-1])
    written, _ = import_tokens([folder], str(tmp_path / "b"), CodecArgs())
    assert (written.num_cuts, written.first_skipped.id) == (len(AWKWARD) - 1, "plain")
    written, _ = import_tokens([folder / "codes"], str(tmp_path / "c"), CodecArgs())
    assert (written.num_cuts, written.first_skipped.id) == (len(AWKWARD) - 1, "plain")


def test_features_are_no_tokens(tmp_path):
    from lhotse.features.io import MemoryRawWriter
    from lhotse.shar import SharWriter

    write(tmp_path / "t", items_of(ids=["a"]))
    (cut,) = CutSet.from_file(tmp_path / "t/cuts.jsonl.gz")
    cut.features.storage_key = MemoryRawWriter().write("", np.zeros((1, 3), np.float32))
    cut.features.storage_type, cut.features.storage_path = "memory_raw", ""
    (tmp_path / "s").mkdir()
    with SharWriter(str(tmp_path / "s"), {"features": "numpy"}) as writer:
        writer.write(cut)
    with pytest.raises(UserError, match=r"float32 array.*not tokens"):
        import_tokens([tmp_path / "s"], str(tmp_path / "b"), BY_NAME)


def test_memory_is_flat(tmp_path):
    """A directory a hundred times the size of its largest item costs little more than that."""
    info = replace(INFO, num_codebooks=8)

    def items():
        for n in range(150):
            yield TokenItem(f"{n}", np.full((20_000, 8), n % 64, np.int16))  # 320 kB

    peaks = []
    tracemalloc.start()
    for work in (
        lambda: write_token_dir(str(tmp_path / "t"), info, items(), {}),
        lambda: export_tokens(tmp_path / "t", tmp_path / "s", "shar"),
        lambda: export_tokens(tmp_path / "t", tmp_path / "n", "npy"),
        lambda: import_tokens([tmp_path / "s"], str(tmp_path / "b"), CodecArgs()),
    ):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        work()
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
    tracemalloc.stop()
    assert max(peaks) < 10_000_000  # of 48 MB


# ------------------------------------------------------------------- foreign files, and codecs


def test_arrays_of_others(tmp_path):
    codes = [i.codes for i in items_of()]
    for n, c in enumerate(codes):
        path = tmp_path / "in" / f"d{n % 2}" / f"{n}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, c.T.astype(np.int64))
    with pytest.raises(UserError, match="--order kt if the arrays lie the other way"):
        import_tokens([tmp_path / "in"], str(tmp_path / "t"), BY_NAME)
    with pytest.raises(UserError, match="does not say which codec"):
        import_tokens([tmp_path / "in"], str(tmp_path / "t"), CodecArgs(), "kt")
    import_tokens([tmp_path / "in"], str(tmp_path / "t"), BY_NAME, "kt")
    got = {g[0]: g[1] for g in contents(tmp_path / "t")}
    assert got == {f"d{n % 2}/{n}": c.tolist() for n, c in enumerate(codes)}
    assert codec_of(tmp_path / "t")["fingerprint"] == "unknown:some/codec"
    with pytest.raises(UserError, match=r"--order tk is for .npy files"):
        import_tokens([export(tmp_path)], str(tmp_path / "x"), CodecArgs(), "tk")


def export(tmp_path):
    write(tmp_path / "mine")
    export_tokens(tmp_path / "mine", tmp_path / "exported", "npy")
    return tmp_path / "exported"


@pytest.mark.parametrize(
    "array", [np.zeros((3, 3)), np.zeros(3, int), np.zeros((1, 3, 3), int), b"", b"\x93NUMPY\1\0"]
)
def test_arrays_that_are_no_codes(tmp_path, array):
    if isinstance(array, bytes):
        (tmp_path / "a.npy").write_bytes(array)
    else:
        np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=r"a\.npy"):
        import_tokens([tmp_path / "a.npy"], str(tmp_path / "t"), BY_NAME)


def test_an_import_must_agree_with_its_codec(tmp_path):
    other = CodecArgs(codec_name="x", sampling_rate=8000, hop=80, codebook_size=64)
    with pytest.raises(UserError, match="codec mismatch"):
        import_tokens([export(tmp_path)], str(tmp_path / "t"), other)


@pytest.mark.parametrize(
    "args, message",
    [
        (CodecArgs(codec="spectral", codec_name="x"), "--codec excludes"),
        (CodecArgs(codec="spectral", hop=3), "--codec excludes"),
        (CodecArgs(hop=3), "go with --codec-name"),
        (CodecArgs(codec_name="x", hop=-3), "must be positive"),
        (CodecArgs(codec_name="x", hop=3), "--sampling-rate, --codebook-size"),
    ],
)
def test_codec_flags_that_do_not_add_up(tmp_path, args, message):
    np.save(tmp_path / "a.npy", np.zeros((3, 3), int))
    with pytest.raises(UserError, match=message):
        import_tokens([tmp_path / "a.npy"], str(tmp_path / "t"), args)


def test_a_codec_known_by_name_only():
    """Never taken for one whose weights were compared, and decoded on the user's word."""
    from rvqlm.codecs.registry import load_codec

    info = load_codec("spectral").info
    named = replace(info, fingerprint="unknown:spectral")
    assert is_unknown(named) and not is_unknown(info)
    with pytest.raises(UserError, match="unknown:spectral"):
        info.require_same(named, "a", "b")
    with pytest.raises(UserError, match="codec mismatch"):  # two names are two codecs
        named.require_same(replace(named, name="b", fingerprint="unknown:b"), "a", "b")

    def source(info):
        return TokenSource("token directory", "tokens", iter(()), info)

    codec, remark = load_codec_for(source(replace(named, num_codebooks=3)))
    assert codec.info.num_codebooks == 3 and "known by name only" in remark
    assert load_codec_for(source(info))[1] == ""
    with pytest.raises(UserError, match="hop 160 against 320"):
        load_codec_for(source(replace(named, hop=160)))


# -------------------------------------------------------------------------------------- NPQ


def test_npq_there_and_back(tmp_path):
    write(tmp_path / "t")
    items = items_of()
    with pytest.raises(UserError, match=r"stores a loudness scale.*--drop-scales"):
        export_npq(items, INFO, tmp_path / "n")
    assert not (tmp_path / "n").exists()
    assert export_npq(items, INFO, tmp_path / "n", drop_scales=True)[0] == len(items)
    header, codes = read_npq(path_for_id(tmp_path / "n", AWKWARD[1], ".npq"))
    assert (header.token_rate, header.vocab_sizes) == (50.0, (64,) * 3)
    assert (codes == items[1].codes).all() and codes.dtype == np.uint8
    _, info = import_npq([tmp_path / "n"], str(tmp_path / "b"), CodecArgs())
    assert info == INFO  # by the codec.json beside them
    want = {i.id: i.codes.tolist() for i in items}
    assert {g[0]: g[1] for g in contents(tmp_path / "b")} == want


def test_npq_import_export_gives_the_same_bytes(tmp_path):
    (tmp_path / "in").mkdir()
    codes = np.array([[1, 2], [3, 63]])
    write_npq(tmp_path / "in/a.npq", codes, 50.0, [64, 64], 127.5, dtype="uint16")
    write_npq(tmp_path / "in/b.npq", codes[:0], 50.0, [64, 64])
    (tmp_path / "in/c.npq").write_bytes(b"NPQ1 and then nothing")
    files = [str(tmp_path / "in/*.npq")]
    named = CodecArgs(codec_name="x", sampling_rate=16000)
    written, info = import_npq(files, str(tmp_path / "t"), named)
    assert (info.hop, info.codebook_size, info.fingerprint) == (320, 64, "unknown:x")
    assert (written.num_cuts, written.skipped) == (1, 2)
    skipped = (tmp_path / "t/skipped.jsonl").read_text().splitlines()
    assert ["no frames" in skipped[0], "none of the known headers" in skipped[1]] == [True, True]
    items = read_items(tmp_path / "t/cuts.jsonl.gz", info)
    export_npq(items, info, tmp_path / "out", dtype="uint16")
    assert (tmp_path / "out/a.npq").read_bytes() == (tmp_path / "in/a.npq").read_bytes()


def test_npq_sizes_per_level_survive(tmp_path):
    write_npq(tmp_path / "a.npq", np.array([[3, 63]]), 50.0, [4, 64])
    named = CodecArgs(codec_name="x", sampling_rate=16000)
    _, info = import_npq([tmp_path], str(tmp_path / "t"), named)
    assert info.codebook_size == 64
    export_npq(read_items(tmp_path / "t/cuts.jsonl.gz", info), info, tmp_path / "out")
    assert (tmp_path / "out/a.npq").read_bytes() == (tmp_path / "a.npq").read_bytes()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vocab_sizes": 32}, r"b.npq \(vocabularies 32 x 2\) .* are of different codecs"),
        ({"token_rate": 75.0}, "b: 75 frames per second, codec x has 50"),
        ({"codes": np.zeros((9, 3), int)}, "vocabularies 64 x 3"),
    ],
)
def test_npq_files_of_different_codecs(tmp_path, change, message):
    given = {"codes": np.zeros((9, 2), int), "token_rate": 50.0, "vocab_sizes": 64}
    write_npq(tmp_path / "a.npq", **given)
    write_npq(tmp_path / "b.npq", **{**given, **change})
    named = CodecArgs(codec_name="x", sampling_rate=16000)
    with pytest.raises(UserError, match=message):
        import_npq([tmp_path], str(tmp_path / "t"), named)
    assert not (tmp_path / "t").exists()


def test_npq_and_a_codec_that_did_not_make_it(tmp_path):
    codes = np.zeros((90, 8), int)
    write_npq(tmp_path / "a.npq", codes, 86.1328125, 1024)
    with pytest.raises(UserError, match=r"86.1328 frames per second, codec spectral has 50"):
        import_npq([tmp_path / "a.npq"], str(tmp_path / "t"), CodecArgs("spectral"))
    write_npq(tmp_path / "a.npq", codes, 50.0, 2048)
    with pytest.raises(UserError, match="vocabularies of up to 2048, codec spectral has 1024"):
        import_npq([tmp_path / "a.npq"], str(tmp_path / "t"), CodecArgs("spectral"))
    write_npq(tmp_path / "a.npq", codes, 50.2, 1024)  # T / seconds of a short file
    _, info = import_npq([tmp_path / "a.npq"], str(tmp_path / "t"), CodecArgs("spectral"))
    assert info.name == "spectral" and not is_unknown(info)


def test_find_files(tmp_path):
    for name in ("a/x.npq", "b/x.npq", "b/x.NPQ", "b/other.txt", "b/._y.npq", "a/[1].npq"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    ids = [i for i, _ in find_files([tmp_path], ".npq")]
    assert ids == ["a/[1]", "a/x", "b/x.NPQ", "b/x.npq"]
    assert [i for i, _ in find_files([tmp_path / "a/[1].npq"], ".npq")] == ["[1]"]
    assert [i for i, _ in find_files([str(tmp_path / "*/x.npq")], ".npq")] == ["a/x", "b/x"]
    for nothing in (tmp_path / "none", str(tmp_path / "c*"), tmp_path / "b/other"):
        with pytest.raises(UserError, match=r"no .npq file there"):
            find_files([nothing], ".npq")


def test_what_a_pattern_leaves_out_is_said(tmp_path):
    """The top of an export is not all of it: ids with folders lie deeper."""

    def remark(*inputs):
        return left_out(inputs, ".npq", find_files(inputs, ".npq"))

    for name in ("n/one.npq", "n/two.npq", "n/deep/three.npq", "n/deep/deeper/four.npq"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("")
    n = tmp_path / "n"
    said = remark(str(n / "*.npq"))
    assert said.startswith(f"2 .npq files below {n} left out, {n}/deep/deeper/four.npq first; give")
    assert "1 .npq file below" in remark(str(n / "*" / "*.npq"), str(n / "*.npq"))
    assert remark(str(n / "**" / "*.npq")) == remark(str(n)) == ""
    top = [str(n / "one.npq"), str(n / "two.npq")]  # as a shell expands an unquoted pattern
    assert remark(*top) == remark(top[0]) == ""
    (n / "codec.json").write_text("{}")
    assert remark(*top) == said and remark(top[0]) == ""


def test_names_of_samples():
    names = Names(["Taken", "many-00"])
    assert [names.take(n) for n in ("a", "a", "a-01", "taken")] == [
        "a",
        "a-01",
        "a-01-01",
        "taken-01",
    ]
    assert [names.take("a", first=0), names.take("a", first=0)] == ["a-00", "a-02"]
    assert names.take("many", ["-00", "-01"]) == "many-01"
    assert names.take("many-01-00") == "many-01-00-01"


@pytest.mark.parametrize("ids", [["same", "same"], ["../x", "_/x-" + "0" * 12], ["a", "a.npy/b"]])
def test_two_ids_are_never_one_file(tmp_path, ids, monkeypatch):
    monkeypatch.setattr("rvqlm.exchange.names._mark", lambda id: "0" * 12)
    items = items_of(ids=ids)
    with pytest.raises(UserError, match=r"would replace another in|cannot be a file: "):
        write_npy(tmp_path, iter(items), INFO)
