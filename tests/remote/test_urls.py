"""URLs of buckets: what is taken, what is refused, what is never printed."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rvqlm.errors import UserError
from rvqlm.remote import session
from rvqlm.remote.session import localize
from rvqlm.remote.urls import checked, masked


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAEXAMPLE:wJalrSECRET@bucket/exp",
        "gs://bucket/exp?token=SECRET",
        "s3://bucket/exp?X-Amz-Signature=SECRET&X-Amz-Credential=AKIAEXAMPLE",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url):
    with pytest.raises(UserError, match="credentials") as raised:
        localize(url)
    assert "SECRET" not in str(raised.value) and "AKIA" not in str(raised.value)


@pytest.mark.parametrize("url", ["s3://", "s3:///a", "s3://b//a", "s3://b/../c", "s3://b/*.wav"])
def test_what_is_no_place_in_a_bucket(url):
    with pytest.raises(UserError, match="not a place in a bucket"):
        checked(url)


def test_secrets_of_the_environment_are_masked(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    assert masked("denied: very-secret") == "denied: $AWS_SECRET_ACCESS_KEY"
    assert masked("https://host/a?Signature=abc def") == "https://host/a?... def"


@dataclass
class Group:
    inner: str = "file:///data/a"


@dataclass
class Flags:
    path: Path = Path("file:/data/b")
    paths: tuple[str, ...] = ("file:///c", "d")
    group: Group = field(default_factory=Group)
    number: int = 1


def test_files_are_used_in_place_wherever_a_flag_names_them():
    flags = localize(Flags())
    assert (flags.path, flags.paths, flags.group.inner) == (
        Path("/data/b"),
        ("/c", "d"),
        "/data/a",
    )
    assert localize(flags) is flags


def test_flags_of_another_machine_ask_no_store(monkeypatch):
    monkeypatch.setattr(session, "Mirror", None)  # nothing is made of one
    with session.unreached():
        assert session.localize(["s3://bucket/tokens", "data"]) == ["s3://bucket/tokens", "data"]
        with pytest.raises(UserError, match="credentials"):
            session.localize("s3://key:secret@bucket/tokens")
    with pytest.raises(TypeError):
        session.localize("s3://bucket/tokens")
