"""The style sheet and script of the HTML reports, as text: a report is a single file."""

from __future__ import annotations

# Okabe and Ito's colours, told apart by colour-blind readers too; one per contender, the same in every plot.
COLOURS: dict[str, tuple[str, str]] = {  # light, dark
    "native": ("#009e73", "#2fc79b"),
    "sdpa": ("#0072b2", "#4aa8e0"),
    "flex": ("#8d5fb8", "#b48be0"),
    "torch-flash": ("#e69f00", "#f0b63a"),
    "torch-efficient": ("#b8860b", "#d8ac42"),
    "torch-cudnn": ("#56a0c9", "#7cc4ea"),
    "torch-math": ("#8a8f98", "#8b93a1"),
    "flash-attn-2": ("#cc79a7", "#e298c2"),
    "flash-attn-4": ("#a5447b", "#d873ab"),
    "dense-mask": ("#d55e00", "#f0823a"),
}
OTHER = ("#666666", "#aaaaaa")


def colour_rules() -> str:
    """A variable for each contender's colour, light and dark."""
    light, dark = ("".join(f"--c-{name}:{pair[theme]};" for name, pair in COLOURS.items()) for theme in (0, 1))
    preferred = f':root:not([data-theme="light"]){{{dark}}}'
    chosen = f':root[data-theme="dark"]{{{dark}}}'
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{{preferred}}}{chosen}"


DARK = """
  --bg:#12151a; --card:#1a1f27; --ink:#e8ebf0; --soft:#9aa4b2; --line:#2c3440; --track:#232a34; --good:#3fcf8e;
  --bad:#ff7b72; --accent:#7cc4ea; --shadow:none;
"""
CSS = f"""
:root{{ color-scheme:light dark;
  --bg:#f6f7f9; --card:#ffffff; --ink:#1b2028; --soft:#5b6573; --line:#dfe3e9; --track:#eef1f5; --good:#0a7d4f;
  --bad:#c0362c; --accent:#0072b2; --shadow:0 1px 2px rgb(20 30 50/.06),0 4px 14px rgb(20 30 50/.05);
  --mono:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace; }}
@media(prefers-color-scheme:dark){{ :root:not([data-theme="light"]){{ {DARK} }} }}
:root[data-theme="dark"]{{ color-scheme:dark; {DARK} }}
:root[data-theme="light"]{{ color-scheme:light; }}
*{{ box-sizing:border-box }}
body{{ margin:0; background:var(--bg); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif }}
main{{ max-width:1080px; margin:0 auto; padding:28px 20px 60px }}
header{{ display:flex; gap:16px; align-items:flex-start; justify-content:space-between }}
h1{{ font-size:1.65rem; line-height:1.2; margin:0 0 6px; letter-spacing:-.01em; text-wrap:balance }}
h2{{ font-size:1.15rem; margin:38px 0 4px }}
h3{{ font-size:1rem; margin:0 }}
p{{ margin:.3em 0 .8em }} .soft{{ color:var(--soft) }} .small{{ font-size:.86rem }}
button{{ font:inherit; font-size:.86rem; color:var(--ink); background:var(--card); border:1px solid var(--line);
  border-radius:8px; padding:6px 12px; cursor:pointer; white-space:nowrap }}
button:hover{{ border-color:var(--soft) }} :focus-visible{{ outline:2px solid var(--accent); outline-offset:2px }}
.facts{{ display:flex; flex-wrap:wrap; gap:6px 18px; margin:10px 0 0; padding:0; list-style:none; font-size:.86rem }}
.facts b{{ font-weight:600 }} .facts span{{ color:var(--soft) }}
.card{{ background:var(--card); border:1px solid var(--line); border-radius:12px; box-shadow:var(--shadow);
  padding:16px 18px; margin:12px 0 }}
.tiles{{ display:grid; grid-template-columns:repeat(auto-fit,minmax(210px,1fr)); gap:12px; margin:20px 0 6px }}
.tiles .card{{ margin:0 }} .big{{ font-size:1.9rem; font-weight:650; line-height:1.15; letter-spacing:-.02em }}
.bad{{ color:var(--bad) }} .good{{ color:var(--good) }}
.cardhead{{ display:flex; justify-content:space-between; gap:10px; align-items:baseline; flex-wrap:wrap }}
.key{{ display:inline-block; width:.75em; height:.75em; border-radius:3px; background:var(--soft); margin-right:.45em;
  vertical-align:-.02em }}
.scroll{{ overflow-x:auto; -webkit-overflow-scrolling:touch }}
.plot{{ display:block; min-width:760px; width:100%; height:auto }}
table{{ border-collapse:collapse; width:100%; font-size:.84rem; font-variant-numeric:tabular-nums }}
th,td{{ text-align:left; padding:5px 12px 5px 0; border-bottom:1px solid var(--line); white-space:nowrap;
  vertical-align:top }} th{{ color:var(--soft); font-weight:550 }} td.wide{{ white-space:normal; min-width:14em }}
td.num,th.num{{ text-align:right }} tr.first td{{ border-top:1px solid var(--soft) }}
details>summary{{ cursor:pointer; font-weight:600 }} pre{{ font:12.5px/1.45 var(--mono); overflow-x:auto; margin:10px 0;
  padding:12px; background:var(--track); border-radius:8px }}
code{{ font-family:var(--mono); font-size:.9em; overflow-wrap:anywhere }}
@media(max-width:560px){{ main{{ padding:18px 14px 40px }} h1{{ font-size:1.35rem }}
  .card{{ padding:13px 14px }} }}
@media print{{ button{{ display:none }} .card{{ break-inside:avoid; box-shadow:none }} }}
"""

SCRIPT = """
const root=document.documentElement;
document.getElementById('theme').addEventListener('click',()=>{
  const dark=root.dataset.theme?root.dataset.theme==='dark':matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme=dark?'light':'dark';});
const copy=document.getElementById('copy');
copy.addEventListener('click',async()=>{
  const text=document.getElementById('markdown').textContent;
  try{await navigator.clipboard.writeText(text);copy.textContent='Copied';}
  catch{const range=document.createRange();range.selectNodeContents(document.getElementById('markdown'));
    getSelection().removeAllRanges();getSelection().addRange(range);copy.textContent='Selected: press Ctrl+C';}});
"""
