"""How a report looks: system fonts, a palette that colour-blind readers can tell apart, light and dark."""

from __future__ import annotations

#: colours of the agents in order; after Okabe and Ito (2008), shifted to at least 3:1 against the page
_LIGHT = (
    "#0072b2", "#c8500a", "#00835c", "#a8479a", "#a87400", "#2a8fc9",
    "#5f6672", "#8a5a3c", "#5b3fb5", "#5f7a00", "#b3213c", "#0a6f7d",
)  # fmt: skip
_DARK = (
    "#56b4e9", "#ff8b4a", "#2fc79a", "#e79ac6", "#e6b422", "#9fd3f5",
    "#a9b1bd", "#c9a07f", "#b39df5", "#b5d334", "#ff8095", "#5ccfdd",
)  # fmt: skip

_VARIABLES = """
--page: %s; --card: %s; --ink: %s; --soft: %s; --rule: %s; --grid: %s; --warn: %s; --warn-ink: %s; color-scheme: %s;
"""


def _root(surface: tuple[str, ...], colours: tuple[str, ...]) -> str:
    agents = " ".join(f"--c{index}: {colour};" for index, colour in enumerate(colours))
    return f":root {{ {(_VARIABLES % surface).strip()} {agents} }}"


_LIGHT_SURFACE = ("#f6f7f9", "#ffffff", "#1a1f27", "#5c6470", "#dde1e7", "#eceff3", "#fff4e0", "#6d4300", "light")
_DARK_SURFACE = ("#12151a", "#1a1e25", "#e6e9ee", "#9ba4b1", "#313843", "#262c35", "#3a2d14", "#ffd899", "dark")

_PAGE = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
main { max-width: 1104px; margin: 0 auto; padding: 56px 32px 72px; }
h1 { font-size: 15px; font-weight: 600; color: var(--soft); margin: 0 0 14px; overflow-wrap: anywhere; }
h2 { font-size: 20px; font-weight: 650; letter-spacing: -0.01em; margin: 0 0 4px; }
h3 { font-size: 14px; font-weight: 600; margin: 20px 0 6px; }
.verdict { font-size: 27px; line-height: 1.34; letter-spacing: -0.015em; font-weight: 600; margin: 0 0 16px;
  max-width: 34em; text-wrap: pretty; overflow-wrap: anywhere; }
.standing { font-size: 17px; line-height: 1.5; margin: 0 0 10px; max-width: 72ch; text-wrap: pretty;
  overflow-wrap: anywhere; }
.standing + .standing { font-size: 14px; color: var(--soft); margin-bottom: 16px; max-width: 84ch; }
.facts, .caption { color: var(--soft); font-size: 14px; margin: 0; text-wrap: pretty; }
.caption { margin-bottom: 14px; max-width: 74ch; }
.caveats { background: var(--warn); color: var(--warn-ink); border-radius: 10px; padding: 12px 18px; margin: 0 0 20px;
  font-size: 15px; overflow-wrap: anywhere; }
.caveats p { margin: 3px 0; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 14px; padding: 26px 28px 24px;
  margin-top: 24px; }
.scroll { overflow-x: auto; margin: 0 -28px; padding: 0 28px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 13.5px;
  font-variant-numeric: tabular-nums; }
th { font-weight: 500; color: var(--soft); text-align: right; padding: 6px 0 8px 12px; vertical-align: bottom; }
td { text-align: right; padding: 8px 0 8px 12px; border-top: 1px solid var(--rule); white-space: nowrap; }
td small { color: var(--soft); font-size: 12px; font-weight: 400; }
th.text, td.text { text-align: left; }
th.trials, td.trials { padding-left: 20px; }
td.trials { white-space: normal; min-width: 130px; }
th:first-child, td:first-child { padding-left: 0; }
tr.best td { font-weight: 650; }
tr.dense td { color: var(--soft); }
td.bar { width: 22%; padding-left: 18px; }
td.bar svg { display: block; width: 100%; height: 9px; }
.layers td { padding-top: 4px; padding-bottom: 4px; }
td.heat { min-width: 52px; padding-right: 8px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 10px; padding: 0; list-style: none;
  font-size: 14px; }
.swatch { width: 14px; height: 14px; margin-right: 7px; vertical-align: -2px; }
pre { font: 12.5px/1.55 ui-monospace, SFMono-Regular, Menlo, "Liberation Mono", monospace; background: var(--page);
  border-radius: 8px; padding: 14px 16px; margin: 0; overflow-x: auto; }
pre.error { white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; font-size: 14px; color: var(--soft); padding: 4px 0; }
pre.command { margin: 12px 0 8px; padding: 8px 12px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 24px; font-size: 14px; margin: 14px 0 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 720px) {
  main { padding: 28px 14px 40px; }
  .verdict { font-size: 21px; }
  section { padding: 20px 16px; border-radius: 12px; margin-top: 16px; }
  .scroll { margin: 0 -16px; padding: 0 16px; }
  .plot.wide { display: none; }
  th:first-child, td:first-child { position: sticky; left: -16px; background: var(--card); }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 10px; }
}
@media (min-width: 721px) { .plot.narrow { display: none; } }
@media print { body { background: none; } section { break-inside: avoid; } }
"""

_PLOT = """
figure { margin: 0; }
figure.plot svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--ink); font-size: 12.5px; font-variant-numeric: tabular-nums; }
svg .label { fill: var(--soft); }
svg .faint { fill: var(--soft); font-size: 11px; }
svg .axis { fill: var(--soft); font-size: 12.5px; }
svg .note { font-size: 12px; fill: var(--soft); }
svg .panel { font-size: 13px; font-weight: 600; }
svg .name { font-size: 10px; fill: var(--soft); font-family: ui-monospace, Menlo, "Liberation Mono", monospace; }
svg .grid { stroke: var(--grid); }
svg .base { stroke: var(--rule); }
svg .band { fill: currentColor; opacity: 0.14; }
svg .curve { fill: none; stroke: currentColor; stroke-width: 2.2; stroke-linejoin: round; }
svg .curve.thin { stroke-width: 1.6; }
svg .once { stroke: currentColor; stroke-width: 2; stroke-dasharray: 6 5; }
svg .interval { fill: currentColor; opacity: 0.26; }
svg .figure { fill: var(--soft); stroke: var(--card); stroke-width: 5px; paint-order: stroke; }
svg .seed { fill: none; stroke: currentColor; stroke-width: 6; stroke-linecap: round; opacity: 0.6; }
svg .cloud { fill: none; stroke: currentColor; stroke-width: 5; stroke-linecap: round; opacity: 0.3; }
svg .front { fill: none; stroke: var(--ink); stroke-width: 1.3; opacity: 0.75; }
svg .winner { fill: currentColor; stroke: var(--card); stroke-width: 1.8; }
svg .step { font-size: 11.5px; fill: var(--soft); }
svg .over { fill: var(--card); stroke: currentColor; stroke-width: 1.8; }
svg .limit { stroke: var(--ink); stroke-width: 1.2; stroke-dasharray: 3 3; opacity: 0.7; }
svg .dense { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 8 4; fill: none; }
svg circle.dense { fill: var(--card); stroke: var(--ink); stroke-dasharray: none; stroke-width: 1.6; }
svg .bar { fill: currentColor; opacity: 0.82; }
svg .slot { fill: transparent; }
svg .swatch-mark { fill: currentColor; }
svg .column:hover .slot { fill: var(--grid); }
svg .column:hover .bar { opacity: 1; }
"""

_COLOURS = "\n".join(f".c{index} {{ color: var(--c{index}); }}" for index in range(len(_LIGHT)))

CSS = "\n".join(
    [
        _root(_LIGHT_SURFACE, _LIGHT),
        f"@media (prefers-color-scheme: dark) {{ {_root(_DARK_SURFACE, _DARK)} }}",
        _PAGE.strip(),
        _PLOT.strip(),
        _COLOURS,
    ]
)
