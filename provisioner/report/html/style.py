"""How the page looks: one sheet for light, dark, a phone and paper."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--page:#f6f4ef;--card:#fff;--ink:#20242b;--soft:#5d6470;--line:#e4e0d7;--fill:#f3f0ea;
--good:#17693f;--good-fill:#e3f3e9;--warn:#855400;--warn-fill:#fbefd5;--bad:#ab2018;--bad-fill:#fce6e3;
--accent:#3d4fb0;--accent-fill:#e6e9fa;
--p0:#a7abb5;--p1:#3d4fb0;--p2:#2b8a9c;--p3:#4f9d5d;--p4:#d08a1d;--p5:#b4557f}
@media (prefers-color-scheme:dark){:root{--page:#121418;--card:#1b1e24;--ink:#e9e7e2;--soft:#a2a8b3;--line:#31353e;
--fill:#242830;--good:#6fd39b;--good-fill:#17301f;--warn:#eebb55;--warn-fill:#35290f;--bad:#ff958a;--bad-fill:#3b1b19;
--accent:#a9b5ff;--accent-fill:#262c4a;--p0:#6b717d;--p1:#8493f0;--p2:#58bccd;--p3:#7fcf8c;--p4:#eab354;--p5:#e08bb2}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",Ubuntu,"Helvetica Neue",sans-serif}
main,footer{max-width:61rem;margin:0 auto;padding:0 1.25rem}
main{padding-top:2rem}
h1{font-size:clamp(1.35rem,1rem + 1.7vw,1.9rem);line-height:1.25;margin:.2rem 0 .4rem;font-weight:680;
letter-spacing:-.012em;text-wrap:balance;overflow-wrap:anywhere}
h2{font-size:1.16rem;margin:0 0 .9rem;font-weight:660;letter-spacing:-.006em}
h3{font-size:.95rem;margin:1.3rem 0 .5rem;font-weight:640}
p{margin:.4rem 0;max-width:44rem;overflow-wrap:anywhere}
header,section{background:var(--card);border:1px solid var(--line);border-radius:14px;
padding:1.4rem 1.5rem;margin:0 0 1.1rem}
header{border-top:5px solid var(--tone)}
header.good{--tone:var(--good)}header.warn{--tone:var(--warn)}header.bad{--tone:var(--bad)}
header.plain{--tone:var(--accent)}
.kicker{color:var(--tone);font-weight:660;font-size:.9rem;display:flex;align-items:center;gap:.45rem;margin:0}
.kicker svg{flex:none}
.about{max-width:none;color:var(--soft);font-size:.92rem;margin:.3rem 0 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.8rem;
margin:1.3rem 0 0;padding:0;list-style:none}
.tiles li{background:var(--fill);border-radius:10px;padding:.75rem .9rem;margin:0;min-width:0}
.tiles .label,.tiles .note{display:block;color:var(--soft);font-size:.82rem;overflow-wrap:anywhere}
.tiles .value{display:block;font-size:1.16rem;font-weight:660;line-height:1.3;overflow-wrap:anywhere}
code{font:.88em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.path{overflow-wrap:anywhere}
dl{display:grid;grid-template-columns:minmax(0,1fr);gap:.15rem;margin:0}
dl>div{display:grid;grid-template-columns:minmax(6.5rem,9rem) minmax(0,1fr);gap:1rem;padding:.3rem 0;
border-bottom:1px solid var(--line)}
dl>div:last-child{border-bottom:0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.columns{columns:2 22rem;column-gap:2.4rem}.columns>div{break-inside:avoid}
.columns h3:first-child,.columns>div>h3{margin-top:0}
.columns>div{margin-bottom:1rem;min-width:0}
table{border-collapse:collapse;width:100%;font-size:.94rem}
caption{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
th,td{text-align:left;vertical-align:top;padding:.5rem .9rem .5rem 0;border-bottom:1px solid var(--line)}
tr>:last-child{padding-right:0}
tbody tr:last-child>*{border-bottom:0}
thead th{color:var(--soft);font-weight:500;font-size:.84rem;white-space:nowrap}
tbody th{font-weight:500}
.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.sub{display:block;color:var(--soft);font-size:.87rem;font-weight:400;overflow-wrap:anywhere}
.badge{display:inline-block;border-radius:99px;padding:.05rem .6rem;font-size:.82rem;font-weight:620;white-space:nowrap;
background:var(--fill);color:var(--soft)}
.badge.good{background:var(--good-fill);color:var(--good)}.badge.warn{background:var(--warn-fill);color:var(--warn)}
.badge.bad{background:var(--bad-fill);color:var(--bad)}
.said{list-style:none;margin:0;padding:0}
.said>li{padding:.65rem 0 .65rem .95rem;border-left:4px solid var(--line);margin:0 0 .7rem}
.said>li:last-child{margin-bottom:0}
.said>li.bad{border-color:var(--bad)}.said>li.warn{border-color:var(--warn)}
.said p{margin:.25rem 0 0}.said .message{white-space:pre-line}
ul{margin:.4rem 0;padding-left:1.2rem}li{margin:.2rem 0;overflow-wrap:anywhere}
figure{margin:0 0 .4rem;display:grid;gap:1.5rem;grid-template-columns:minmax(0,23rem) minmax(0,1fr);align-items:start}
figure img{display:block;width:100%;height:auto;border-radius:10px;background:var(--fill)}
figure.alone{grid-template-columns:minmax(0,1fr)}
figcaption dl>div{grid-template-columns:minmax(5.5rem,7rem) minmax(0,1fr)}
figcaption blockquote{margin:0 0 .8rem;font-size:1.08rem;line-height:1.45;overflow-wrap:anywhere}
.chart{margin:1.6rem 0 0}.chart h3{margin:0 0 .7rem}.chart+.chart{margin-top:2rem}
.quiet{color:var(--soft);font-weight:400}
.plot svg{display:block;width:100%;height:9.5rem}
.plot .top{display:block;text-align:right;color:var(--soft);font-size:.8rem;margin:0 0 .2rem;
font-variant-numeric:tabular-nums}
.plot line{stroke:var(--line);stroke-width:1;vector-effect:non-scaling-stroke}
.plot polygon{fill:var(--p1);fill-opacity:.16}
.plot polyline{fill:none;stroke:var(--p1);stroke-width:2;stroke-linejoin:round;vector-effect:non-scaling-stroke}
.ends{display:flex;justify-content:space-between;color:var(--soft);font-size:.8rem;margin:.25rem 0 .7rem;
font-variant-numeric:tabular-nums}
.bar{display:block;border-radius:4px;background:var(--fill);margin:.35rem 0;overflow:hidden}
figure+.bar{margin-top:1.4rem}
.swatch{border-radius:3px;flex:none}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1.3rem;list-style:none;padding:0;margin:.7rem 0 .8rem;font-size:.9rem}
.key li{display:flex;align-items:center;gap:.45rem;margin:0}
.key b{font-weight:620;font-variant-numeric:tabular-nums}
.waterfall{list-style:none;margin:0;padding:0}
.waterfall li{display:grid;grid-template-columns:minmax(0,1fr) auto;gap:0 1rem;margin:0 0 .55rem;align-items:baseline}
.waterfall .what{overflow-wrap:anywhere}
.waterfall .took{font-variant-numeric:tabular-nums;color:var(--soft);font-size:.9rem;text-align:right}
.waterfall .bar{grid-column:1/-1}
.p0{fill:var(--p0)}.p1{fill:var(--p1)}.p2{fill:var(--p2)}.p3{fill:var(--p3)}.p4{fill:var(--p4)}.p5{fill:var(--p5)}
.bar,.swatch,.plot svg{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.command{display:flex;align-items:flex-start;gap:.6rem;background:var(--fill);border:1px solid var(--line);
border-radius:10px;padding:.7rem .7rem .7rem .95rem;margin:.5rem 0 1rem}
.command:last-child{margin-bottom:0}
.command pre{flex:1;min-width:0;margin:0;padding:.05rem 0;background:none;border-radius:0}
.copy{font:inherit;font-size:.82rem;font-weight:600;color:var(--accent);background:var(--card);
border:1px solid var(--line);border-radius:7px;padding:.15rem .65rem;min-height:1.75rem;cursor:pointer;flex:none}
.copy:hover{border-color:var(--accent)}[hidden]{display:none}
a{color:var(--accent);text-underline-offset:.18em;text-decoration-thickness:from-font}
th a{font-weight:500;text-underline-offset:.34em}
details{margin:.9rem 0 0}summary{cursor:pointer;color:var(--accent)}
pre{margin:.6rem 0 0;white-space:pre-wrap;overflow-wrap:anywhere;
background:var(--fill);border-radius:10px;padding:.75rem .95rem}
summary:focus-visible,a:focus-visible,
.copy:focus-visible{outline:3px solid var(--accent);outline-offset:3px;border-radius:4px}
footer{color:var(--soft);font-size:.86rem;padding-bottom:2.5rem}
@media (max-width:40rem){
.waterfall li{grid-template-columns:minmax(0,1fr)}.waterfall .took{text-align:left}
.command{flex-direction:column}.copy{align-self:flex-end}
main{padding:.8rem .75rem 0}header,section{padding:1.05rem 1rem;border-radius:12px}
.tiles{grid-template-columns:1fr 1fr;gap:.55rem}.tiles li{padding:.6rem .7rem}.tiles .value{font-size:1.02rem}
figure{grid-template-columns:minmax(0,1fr);gap:1rem}
dl>div,figcaption dl>div{grid-template-columns:minmax(0,1fr);gap:0}dt{font-size:.85rem}
table,tbody,tr,th,td{display:block;width:100%}thead{display:none}
tbody tr{border-bottom:1px solid var(--line);padding:.7rem 0}tbody tr:first-child{padding-top:0}
tbody tr:last-child{border-bottom:0;padding-bottom:0}
tbody th,td{border:0;padding:.1rem 0}
td{display:flex;justify-content:space-between;gap:1rem;text-align:right}
td[data-label]::before{content:attr(data-label);color:var(--soft);text-align:left;font-size:.88rem}
td:empty{display:none}
}
@media print{
.copy{display:none}
:root{--page:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#bbb;--fill:#f4f4f4;--good:#17693f;--warn:#855400;--bad:#ab2018;
--good-fill:#fff;--warn-fill:#fff;--bad-fill:#fff;--accent:#3d4fb0}
body{font-size:10.5pt}main,footer{max-width:none;padding:0}
header,section{border-radius:0;border-width:0 0 1px;padding:.7rem 0;margin:0}
tr,figure,.said>li,dl>div{break-inside:avoid}h2,h3{break-after:avoid}
.badge{padding:0}summary{list-style:none;color:inherit}pre{white-space:pre-wrap;overflow-wrap:anywhere}
details::details-content{content-visibility:visible;block-size:auto}
figure{grid-template-columns:9cm 1fr}
}
"""
