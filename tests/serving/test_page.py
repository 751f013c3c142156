"""The page: nothing from elsewhere, and used in a browser, where there is one."""

import contextlib
import re

import httpx2 as httpx
import pytest
from browser import PROGRAM, Browser
from served import eventually, fake_server


def test_nothing_comes_from_elsewhere_and_nothing_else_may_run():
    with fake_server() as (server, _):
        answer = httpx.get(server.url)
    html, policy = answer.text, answer.headers["content-security-policy"]
    assert (
        not re.search(r"(src|href)=[\"'](?!data:)", html)
        and "http" not in html.partition("<main")[0]
    )
    assert not re.search(r"\son\w+=|\sstyle=", html)  # which the policy would not let run
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert policy.count("sha256-") == 2


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium here")
def test_sound_starts_before_its_end_in_a_browser(tmp_path):
    """Text is typed, sound begins while more is made; a token, a recording, a stop."""
    with (
        fake_server(step_seconds=0.02, token="s3cret") as (server, streamer),
        contextlib.closing(Browser(tmp_path)) as page,
    ):
        page.open(server.url)
        page.wait("!document.getElementById('door').hidden")
        page.run("document.getElementById('token').focus()")
        page.tell("Input.insertText", text="s3cret")
        page.press("Enter")
        page.run("document.querySelector('#door button').click()")
        page.wait("!document.getElementById('work').hidden")
        page.run("document.getElementById('text').focus()")
        page.tell("Input.insertText", text="Abba cab dab. " * 4)
        page.press("Enter", control=True)
        wave = "document.getElementById('wave').dataset"
        page.wait(f"!!{wave}.sound")
        page.wait(f"!!{wave}.made")
        sound, made = (float(page.run(f"{wave}.{name}")) for name in ("sound", "made"))
        assert sound < made
        page.wait("document.querySelectorAll('#results li').length === 1")
        said = page.run("document.querySelector('#results p').textContent")
        seconds = 2 * 55 * 0.02
        assert f"{seconds:.1f} s, seed " in said  # which the server's description says
        page.wait("document.querySelector('#results audio').readyState > 0")
        heard = page.run("document.querySelector('#results audio').duration")
        assert heard == pytest.approx(seconds, abs=0.02)
        links = "[...document.querySelectorAll('#results a')].map(a => a.download.slice(-4))"
        assert page.run(links) == [".wav", "json"]

        page.run("document.getElementById('tab-continue').click()")
        page.run("document.getElementById('record').click()")
        page.wait("document.getElementById('record').textContent === 'Stop recording'")
        page.wait("new Promise(done => setTimeout(() => done(true), 500))")
        page.run("document.getElementById('record').click()")
        page.wait("document.getElementById('chosen').textContent === 'recording.wav'")
        page.run("document.getElementById('go').click()")
        page.wait("document.querySelectorAll('#results li').length === 2")

        page.run("document.getElementById('tab-speak').click()")
        page.run(f"delete {wave}.sound, document.getElementById('go').click()")
        page.wait(f"!!{wave}.sound")
        page.press("Escape")
        page.wait("document.getElementById('said').textContent === 'Stopped'")
        page.wait("document.querySelectorAll('#results li').length === 3")
        assert [e for e in page.errors if "401" not in e] == []  # before it had the token
        eventually(lambda: streamer.removed and not streamer.running)
