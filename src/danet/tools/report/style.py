"""The style sheet of a report's pages: light and dark, from a telephone to a wide screen, without a network."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fdfcfa; --panel: #f4f2ed; --ink: #23262b; --soft: #5d626b; --rule: #dcd8d0;
  --blue: #0072b2; --orange: #c77700; --red: #d55e00; --green: #00805e; --pink: #b35f92; --sky: #2f8fc4;
  --up: 0 114 178; --down: 213 94 0;
  --sans: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", "Palatino Linotype", Georgia, "DejaVu Serif", serif;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181c; --panel: #1f2227; --ink: #e7e5e0; --soft: #a3a7ae; --rule: #3a3e45;
    --blue: #5ab4ec; --orange: #f0b040; --red: #f5894a; --green: #35c79c; --pink: #dd97c0; --sky: #8fd0f5;
    --up: 70 160 220; --down: 235 120 50;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--serif); }
main { max-width: 1280px; margin: 0 auto; padding: clamp(1.2rem, 4vw, 3rem) clamp(1rem, 2.5vw, 2rem) 4rem; }
h1 { font-size: clamp(1.6rem, 4vw, 2.2rem); line-height: 1.15; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .6rem; }
p, ul { max-width: 48rem; }
ul { padding-left: 1.2rem; margin: .6rem 0; }
li { margin: .25rem 0; overflow-wrap: anywhere; }
.findings ul { max-width: 60rem; }
.lead { color: var(--soft); margin: 0 0 1.4rem; }
.alert { max-width: 60rem;
  border-left: 4px solid var(--red); background: var(--panel); padding: .7rem 1rem; margin: 1rem 0; }
.alert b { color: var(--red); }
.alert ul { margin: .3rem 0 0; }
figure { margin: 1.6rem 0; }
figcaption, .caption { font: 14px/1.45 var(--sans); color: var(--soft); max-width: 60rem; }
figcaption { margin-top: .6rem; }
figcaption b, .caption b { color: var(--ink); }
.caption { margin: 1.4rem 0 .5rem; }
.note { font: 13.5px/1.45 var(--sans); color: var(--soft); margin: .5rem 0; max-width: 60rem; }

table { border-collapse: collapse; font: 14px/1.4 var(--sans); font-variant-numeric: tabular-nums lining-nums;
  width: 100%; border-bottom: 2px solid var(--ink); }
thead { border-top: 2px solid var(--ink); border-bottom: 1px solid var(--ink); }
th, td { padding: .42rem .4rem; text-align: right; vertical-align: baseline; white-space: nowrap; }
th { font-weight: 600; }
thead small { display: block; font-weight: 400; color: var(--soft); font-size: 12px; }
th:first-child, td:first-child { padding-left: .2rem; }
tbody th, .l { text-align: left; white-space: normal; min-width: 4.5rem; max-width: 16rem; }
.stacked { width: auto; min-width: min(100%, 34rem); }
.stacked .ci { display: block; font-size: 13px; }
.c { text-align: center; }
tbody tr + tr { border-top: 1px solid var(--rule); }
.ci { color: var(--soft); }
.hole { color: var(--red); font-style: italic; }
.scroll { overflow-x: auto; }
.heat thead th { white-space: normal; max-width: 10rem; }
.heat { width: auto; min-width: min(100%, 30rem); }
.heat td { background: rgb(var(--tone, 0 0 0) / var(--a, 0)); }
.heat td[data-clear] { font-weight: 700; }
.heat .ci { font-weight: 400; color: inherit; opacity: .75; }
.heat th:first-child, .runs th:first-child { position: sticky; left: 0; background: var(--paper); z-index: 1; }
.runs { width: auto; min-width: min(100%, 30rem); }
svg { display: block; width: 100%; height: auto; font-family: var(--sans); }
svg text { font-family: var(--sans) !important; }
.narrow { display: none; }
.plot { max-width: 940px; }
.training img, .confusion img { display: block; width: 100%; border-radius: 4px; background: #fff; }
.training img { min-width: 620px; }
.confusion { max-width: 640px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); gap: 1rem; }
.pictures img { width: 100%; display: block; border-radius: 4px; background: #fff; }

.scores { display: flex; flex-wrap: wrap; gap: .4rem 2.6rem; margin: 1.2rem 0 .4rem; padding: 0;
  font-family: var(--sans); }
.scores div { min-width: 6rem; }
.scores dt { color: var(--soft); font-size: 13px; }
.scores dd { margin: 0; font-size: 1.7rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.bars { max-width: 60rem; }
.bar { width: 55%; }
.bar span { display: block; height: .7em; width: calc(var(--v) * 1%); background: var(--blue); border-radius: 2px; }

.settings { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .3rem 1.4rem; margin: .6rem 0;
  font: 14px/1.5 var(--sans); }
.settings dt { color: var(--soft); overflow-wrap: anywhere; max-width: 16rem; }
.settings dd { margin: 0; overflow-wrap: anywhere; white-space: pre-line; }
footer { border-top: 1px solid var(--rule); margin-top: 3rem; }
code, pre { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--panel); padding: .8rem 1rem; overflow-x: auto; border-radius: 4px; }
summary { cursor: pointer; font-family: var(--sans); font-size: 14px; }

@media (max-width: 760px) {
  .wide { display: none; }
  .narrow { display: block; }
  .cards, .cards tbody, .cards tr { display: block; }
  .cards { border: 0; }
  .cards thead { display: none; }
  .cards tr { border-top: 2px solid var(--ink) !important; padding: .5rem 0 .8rem; }
  .heat .ci { display: block; }
  .stacked .ci { display: inline; }
  .cards td > span { white-space: nowrap; }
  .cards th, .cards td { display: flex; justify-content: space-between; gap: 1rem; padding: .16rem 0; max-width: none;
    text-align: right; white-space: normal; }
  .cards tbody th { font-size: 1.05rem; padding-bottom: .3rem; }
  .cards td::before { content: attr(data-label); color: var(--soft); text-align: left; }
  .cards td:empty, .cards td.none { display: none; }
  .settings { grid-template-columns: 1fr; gap: 0; }
  .settings dd { margin-bottom: .6rem; }
}
@media print { .narrow { display: none; } body { background: #fff; } }
"""
