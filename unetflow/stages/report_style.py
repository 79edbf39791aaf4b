"""How a report looks: one column, the system's letters, light and dark, wide and narrow."""

STYLE = """
:root{color-scheme:light dark;--paper:#faf9f6;--ink:#22262b;--soft:#656c75;--line:#e2dfd8;--card:#fff;
--c1:#2b6cb0;--c2:#c2611f;--c3:#2f8560;--c4:#8458a5}
@media (prefers-color-scheme:dark){:root{--paper:#15181c;--ink:#e4e6e9;--soft:#98a0aa;--line:#2c3138;--card:#1b1f24;
--c1:#73b0ee;--c2:#efa065;--c3:#6fc79d;--c4:#bd97dc}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:2.5rem 1.25rem 4rem;max-width:54rem;background:var(--paper);color:var(--ink);
font:1rem/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
header{margin-bottom:2rem}
h1{font-size:1.9rem;line-height:1.2;font-weight:650;margin:0 0 .4rem;letter-spacing:-.01em;overflow-wrap:anywhere}
header p{margin:0;color:var(--soft)}
section{margin:3rem 0}
h2{font-size:1.2rem;font-weight:650;margin:0 0 .9rem;padding-bottom:.35rem;border-bottom:1px solid var(--line)}
p{margin:0 0 1rem;max-width:42rem}
.keys{display:grid;grid-template-columns:repeat(auto-fit,minmax(7.2rem,1fr));gap:.75rem;margin:1.5rem 0}
.keys div{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.8rem 1rem}
.keys b{display:block;font-size:1.35rem;font-weight:600;line-height:1.25;font-variant-numeric:tabular-nums}
.keys span:not(.none){display:block;font-size:.84rem;color:var(--soft);line-height:1.35}
dl{margin:0 0 1rem}
dl div{display:grid;grid-template-columns:12rem 1fr;gap:1rem;padding:.35rem 0;border-bottom:1px solid var(--line)}
dl div:last-child{border-bottom:0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.38rem .9rem .38rem 0;text-align:left;font-weight:400;border-bottom:1px solid var(--line);
vertical-align:top}
td{white-space:nowrap}.n{text-align:right}
.n+td:not(.n),.n+th:not(.n){padding-left:.9rem}
small{display:block;font-size:.84rem;color:var(--soft);line-height:1.4}
td:last-child,thead th:last-child{padding-right:0}
thead th{color:var(--soft);font-size:.88rem}
tbody tr:last-child>*{border-bottom:0}
figure{margin:0 0 2rem}
figcaption{font-size:.88rem;color:var(--soft);margin-top:.5rem;max-width:42rem;line-height:1.5}
svg{display:block;width:100%;height:auto;max-width:34rem}
svg text{font-family:inherit!important}
.strip{display:grid;gap:.6rem}
.strip.n1{grid-template-columns:1fr}.strip.n2{grid-template-columns:repeat(2,1fr)}
.strip.n3{grid-template-columns:repeat(3,1fr)}.strip.n4{grid-template-columns:repeat(4,1fr)}
.strip img{display:block;width:100%;height:auto;border-radius:.35rem;background:var(--line)}
.strip.n2 img,.strip.n3 img,.strip.n4 img{image-rendering:pixelated}
.strip span{font-size:.84rem;color:var(--soft)}
.none{color:var(--soft)}
h3{font-size:1rem;font-weight:600;margin:1.8rem 0 .6rem}
details{margin:.4rem 0 1rem}summary{cursor:pointer;color:var(--soft)}
pre{overflow-x:auto;font-size:.82rem;background:var(--card);border:1px solid var(--line);border-radius:.4rem;
padding:.8rem}
@media (max-width:36rem){body{padding:1.5rem 1rem 3rem}h1{font-size:1.5rem}section{margin:2.2rem 0}
dl div{grid-template-columns:1fr;gap:0}.strip.n3,.strip.n4{grid-template-columns:repeat(2,1fr)}
.strip.n3 div:first-child{grid-column:1/-1}
.keys{grid-template-columns:repeat(2,1fr)}.keys b{font-size:1.15rem}}
@media print{body{max-width:none}section{break-inside:avoid}}
""".strip()
