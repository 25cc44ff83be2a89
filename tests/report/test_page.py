"""The HTML page: everything is in it, nothing is loaded, and it opens in a browser where there is one."""

import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bi_compile.report import Report
from bi_compile.report.page import node_ids
from tests.report.examples import bad, good, large

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Tags with their attributes, ids, visible text; checks that tags are closed in order."""

    VOID = frozenset(("meta", "input", "br", "col", "path", "rect"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def written(report: Report, folder: Path) -> str:
    return report.html(folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(params=[good, bad, large], ids=lambda f: f.__name__)
def report(request):
    return request.param()


def test_every_node_has_a_row_and_a_drawing(report, tmp_path):
    page = Page(written(report, tmp_path))
    assert len(page.ids) == len(set(page.ids))
    for number, graph in enumerate(report.graphs):
        ids = node_ids(graph)
        parameters = {i.node for i in graph.inputs if not i.batched}
        for name in (*(v.node for v in graph.verdicts), *(i.node for i in graph.inputs)):
            assert f"r{number}-{ids[name]}" in page.ids
            assert (f"n{number}-{ids[name]}" in page.ids) == (name not in parameters)
    for verdict in report.verdicts[:50]:
        for shown in (verdict.op, verdict.node, verdict.value, verdict.kind, verdict.reason or ""):
            assert shown in page.text


def test_nothing_is_loaded_from_elsewhere(report, tmp_path):
    text = written(report, tmp_path)
    assert not re.search(r"https?://|@import|url\(|<link|<iframe|<img", text)
    assert not any({"src", "href"} & set(attrs) and tag != "a" for tag, attrs in Page(text).tags)


def test_edges_say_where_the_batch_flows(tmp_path):
    edges = [attrs for tag, attrs in Page(written(good(), tmp_path)).tags if tag == "path"]
    ids = node_ids(good().graphs[0])
    kinds = {attrs["data-e"]: attrs["class"] for attrs in edges}
    assert kinds[f"{ids['x_1']} {ids['linear']}"] == "b"
    assert kinds[f"{ids['ones']} {ids['add']}"] == "p"


def test_trouble_is_listed_above_the_graph(tmp_path):
    text = Page(written(bad(), tmp_path)).text.partition("node, op")[0]
    for expected in ("a & b <i>", "x → x", "graph break: call of print", "nn.LSTM ran as stock PyTorch",
                     "output m, cumsum of graph 0 is not promised", "model.py:9, in forward"):  # fmt: skip
        assert expected in text
    assert "To look at" not in Page(written(good(), tmp_path)).text


def test_two_thousand_nodes_are_small_and_fast(tmp_path):
    report = large()
    assert len(report.verdicts) == 2000
    start = time.process_time()
    path = report.html(tmp_path / "report.html")
    assert time.process_time() - start < 5
    assert path.stat().st_size < 3_000_000


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("make", [bad, large], ids=lambda f: f.__name__)
def test_a_browser_runs_the_page(make, tmp_path):
    # The script opens the node named in the address, writes its details and lights up its edges.
    path = make().html(tmp_path / "report.html")
    dom = rendered(f"{path.as_uri()}#node-0-3", tmp_path / "profile")
    details = re.search(r'<div class="details"[^>]*><h2>([^<]+)</h2>(.*?)</div>', dom)
    assert details is not None
    assert details[1] == make().graphs[0].verdicts[2 if make is bad else 1].node
    assert "reads" in details[2]
    assert dom.count('class="b near"') + dom.count('class="p near"') > 0
    assert re.search(r'<svg[^>]*><g transform="translate\(', dom)


SCHEME = """
<script>
const [, red, green, blue] = getComputedStyle(document.body).backgroundColor.match(/(\\d+), (\\d+), (\\d+)/);
document.title = (+red + +green + +blue) / 3 < 128 ? "dark" : "light";
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_the_page_is_dark_where_the_browser_is(tmp_path):
    path = bad().html(tmp_path / "report.html")
    path.write_text(path.read_text(encoding="utf-8") + SCHEME, encoding="utf-8")
    for number, scheme in enumerate(["dark", "light"]):
        flag = f"--blink-settings=preferredColorScheme={number}"
        assert f"<title>{scheme}</title>" in rendered(path.as_uri(), tmp_path / scheme, flag)


def rendered(address: str, profile: Path, *more: str) -> str:
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-component-update "
    flags += "--disable-background-networking --disable-sync --virtual-time-budget=2000 --dump-dom"
    command = [str(BROWSER), *flags.split(), *more, f"--user-data-dir={profile}", address]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


ACTIONS = """
<script>
const view = views[0], svg = view.svg, log = [];
const at = () => [view.x, view.y, view.scale].map((n) => Math.round(n * 1000) / 1000);
const before = at();
const wheel = { deltaY: -200, clientX: 300, clientY: 300, cancelable: true };
svg.dispatchEvent(new WheelEvent("wheel", wheel));
log.push(at()[2] > before[2] ? "zoomed" : "");
const [x, y] = at();
svg.setPointerCapture = () => {};
for (const [kind, X, Y] of [["down", 300, 300], ["move", 340, 350], ["up", 340, 350]]) {
  svg.dispatchEvent(new PointerEvent("pointer" + kind, { clientX: X, clientY: Y, buttons: 1 }));
}
log.push(at()[0] === x + 40 && at()[1] === y + 50 ? "dragged" : "");
const node = svg.querySelectorAll(".n")[2];
for (const kind of ["pointerdown", "pointerup"]) {
  node.dispatchEvent(new PointerEvent(kind, { bubbles: true }));
}
const marked = [view.rows[view.chosen], node].every((part) => part.classList.contains("chosen"));
log.push(marked ? "clicked" : "");
const chosen = view.chosen;
svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown" }));
log.push(view.chosen === chosen + 1 ? "walked" : "");
search.value = "cumsum";
search.dispatchEvent(new Event("input"));
const shown = () => view.rows.filter((row) => !row.hidden).length;
log.push(shown() < view.rows.length ? "found" : "");
search.value = "";
search.dispatchEvent(new Event("input"));
const mixes = document.querySelector('[data-kind="k-mixes"]');
mixes.click();
log.push(shown() === 1 && mixes.ariaPressed === "true" ? "filtered" : "");
mixes.click();
byId("choice").value = "1";
byId("choice").dispatchEvent(new Event("change"));
log.push(views[0].section.hidden && !views[1].section.hidden ? "switched" : "");
document.querySelector("[data-go]").click();
log.push(!views[0].section.hidden && view.details.textContent.includes("no template") ? "linked" : "");
document.title = log.join(" ");
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_wheel_mouse_keys_search_and_links_work(tmp_path):
    path = bad().html(tmp_path / "report.html")
    path.write_text(path.read_text(encoding="utf-8") + ACTIONS, encoding="utf-8")
    dom = rendered(path.as_uri(), tmp_path / "profile")
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None
    assert title[1] == "zoomed dragged clicked walked found filtered switched linked"
