"""How the page looks and what it makes of a model's text: every screen, Markdown, text that means harm."""

from __future__ import annotations

import json

import pytest

from tests.browser import CONTRAST, NAMELESS, Browser, Page, seen, until
from tests.nanochat_web.harness import Server
from tests.nanochat_web.pages import SCREENS, answered, opened_page, shot, write

pytestmark = pytest.mark.browser
HOSTILE = """<img src=x onerror="window.hacked = 1"><script>window.hacked = 2</script>

[click](javascript:window.hacked=3) [data](data:text/html,<script>window.hacked=4</script>) [odd]( JaVaScRiPt:alert(1))

**<b onclick=alert(1)>bold</b>** `<svg onload=window.hacked=5>` <https://ok.example/?"onmouseover=alert(1)>

```html"><script>window.hacked = 6</script>
</code></pre><script>window.hacked = 7</script>
```

| <script>window.hacked=8</script> | b |
|---|---|
| <img src=x onerror=window.hacked=9> | [x](vbscript:x) |

# <iframe src=javascript:window.hacked=10></iframe>
> <object data=x>
- [y](//evil.example) ![z](http://evil.example/z.png)
"""
RICH = """# Title ##
## About C#

Text with **bold**, *slanted*, `code`, ~~gone~~ and snake_case_words and 2 * 3 * 4.
A second line, https://example.org/a_b_c.

3. three
4. four
   - inner **one**
   - inner two

```python
x = "<b>"
```

| a | b |
|---|:-:|
| 1 | 2 |

> quoted

---
**open and `unclosed
"""


# What has to be scrolled sideways though it is no table and no plot.
WIDE = """[...document.querySelectorAll('dialog, #scroll, #evaluate')]
  .filter(box => box.scrollWidth > box.clientWidth).map(box => box.id)"""


def test_hostile_text_stays_text(page: Page) -> None:
    page.evaluate(
        "(async () => { const { update } = await import('./static/markdown.js');"
        " const box = document.createElement('div');"
        f" box.id = 'probe'; document.body.append(box); const text = {json.dumps(HOSTILE)};"
        # As it comes, in every state of being half written; then whole.
        " for (let end = 0; end <= text.length; end += 1) update(box, text.slice(0, end)); })()"
    )
    tags = set(page.evaluate("[...document.querySelectorAll('#probe *')].map(element => element.tagName)"))
    assert tags <= set(
        [
            "P",
            "BR",
            "A",
            "STRONG",
            "EM",
            "CODE",
            "PRE",
            "DIV",
            "SPAN",
            "BUTTON",
            "TABLE",
            "THEAD",
            "TBODY",
            "TR",
            "TH",
            "TD",
            "H3",
            "BLOCKQUOTE",
            "UL",
            "LI",
        ]
    )
    addresses = page.evaluate("[...document.querySelectorAll('#probe a')].map(link => link.href)")
    assert all(address.startswith(("http://", "https://")) for address in addresses)
    attributes = set(
        page.evaluate("[...document.querySelectorAll('#probe *')].flatMap(one => [...one.attributes].map(a => a.name))")
    )
    assert attributes <= {"href", "rel", "target", "class", "type", "tabindex", "role", "aria-label"}
    assert "<script>window.hacked = 2</script>" in page.evaluate("document.querySelector('#probe').textContent")
    assert page.evaluate("window.hacked") is None
    # Through the model and the stream as well.
    write(page, 'echo <img src=x onerror="window.hacked = 1"> [a](javascript:b)')
    assert answered(page) == '<img src=x onerror="window.hacked = 1"> [a](javascript:b)'
    assert page.evaluate("window.hacked") is None


def test_text_of_a_model_that_loops_is_drawn_soon(page: Page) -> None:
    took = page.evaluate(
        "(async () => { const { update } = await import('./static/markdown.js'); const took = {};"
        " for (const unit of ['>', '> ', ' *a', ' **a', ' _a', '[', '`', '#', '- '])"
        " for (const lead of ['', '# ']) {"
        "  const from = performance.now();"
        "  update(document.createElement('div'), lead + unit.repeat(200000 / unit.length) + 'x');"
        "  took[lead + unit] = performance.now() - from; }"
        " return took; })()"
    )
    assert max(took.values()) < 12000, took  # with the square of the length it is half a minute


def test_markdown(page: Page) -> None:
    found = page.evaluate(
        "(async () => { const { update } = await import('./static/markdown.js');"
        " const box = document.createElement('div');"
        f" update(box, {json.dumps(RICH)}); return box.innerHTML; }})()"
    )
    link = '<a href="https://example.org/a_b_c" rel="noopener noreferrer nofollow" target="_blank">'
    for part in (
        "<h3>Title</h3>",
        "<h4>About C#</h4>",
        "<strong>bold</strong>, <em>slanted</em>, <code>code</code>, <del>gone</del> and snake_case_words",
        " and 2 * 3 * 4.",
        f"<br>A second line, {link}https://example.org/a_b_c</a>.",
        '<ol start="3"><li>three</li><li>four<ul><li>inner <strong>one</strong></li><li>inner two</li></ul></li></ol>',
        '<code>x = "&lt;b&gt;"</code>',
        "<th>a</th><th>b</th>",
        "<blockquote><p>quoted</p></blockquote><hr>",
        "<p>**open and `unclosed</p>",
    ):
        assert part in found, f"{part}\nis not in\n{found}"


@pytest.mark.parametrize("screen", SCREENS)
def test_it_fits_and_can_be_read(browser: Browser, server: Server, screen: str) -> None:
    page = opened_page(browser, server, **SCREENS[screen])
    width = SCREENS[screen]["width"]

    def check(name: str) -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert page.evaluate(WIDE) == [], name
        assert page.evaluate(CONTRAST) == [], name
        assert page.evaluate(NAMELESS) == [], name
        shot(page, f"{name}-{screen}")

    assert page.evaluate("document.activeElement.id") != "menu"
    check("empty")
    page.click("#model")
    until(page, "document.querySelector('#models').open")
    check("models")
    page.click("#models-close")
    write(page, "echo A **long** word: " + "x" * 90 + " and `code`.")
    answered(page)
    check("chat")
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    brightness = sum(int(part) for part in background[4:-1].split(",")) / 3
    assert (brightness < 64) is SCREENS[screen]["dark"]
    if page.evaluate("getComputedStyle(document.querySelector('#menu')).display") != "none":
        assert page.evaluate("document.querySelector('#side').inert")
        page.click("#menu")
        until(page, "document.querySelector('#side').getBoundingClientRect().left === 0")
        check("drawer")
        page.keyboard.press("Escape")
        until(page, "document.querySelector('#side').inert")
        assert page.evaluate("document.activeElement.id") == "menu"
    page.evaluate("location.hash = '#/evaluate'")
    until(page, "!!document.querySelector('.task')")
    check("evaluate")
    assert seen(page).problems == []
    page.context.close()
