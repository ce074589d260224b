"""Make the pictures of the report again, from the runs that ``make demo`` left.

    pip install selenium; python docs/report_screenshots.py [FOLDER]

Looks at a real report in headless Chromium, in light and dark, on a desktop and on a phone; needs chromium and
chromedriver on the PATH. Ends with an error if the page requests anything from elsewhere, complains, or is wider
than the screen. With a folder also the reports of runs in each state, the page of all of them, and, once ``make docs``
has made the site, some of its pages: these go to the folder, to be looked at.
"""

from __future__ import annotations

import base64
import json
import math
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from screenshots import with_few_colors
from selenium import webdriver

from geomonitor.history.history import History
from geomonitor.history.runs import Run, load_run
from geomonitor.report import write_report
from geomonitor.report.many import write_runs

RUNS = Path("runs/mnist_collapse")
DOCS = Path(__file__).parent
DESKTOP, PHONE = (1280, 1240), (390, 844)
MOST_SECONDS, SETTLED_SECONDS = 60, 2
SITE = ("index", "tutorial", "gallery", "history", "howto/wandb", "concepts/four_numbers", "troubleshooting")
UNDRAWN = "return document.querySelectorAll('.plot:not([data-drawn])').length"


def main() -> None:
    """Write the report of the faulty run beside the healthy one and photograph it."""
    if not (RUNS / "faulty").is_dir():
        sys.exit(f"{RUNS} holds no runs: make demo first")
    faulty, healthy = load_run(RUNS / "faulty"), load_run(RUNS / "healthy")
    with tempfile.TemporaryDirectory() as folder:
        address = write_report(faulty, Path(folder, "report.html"), compare=[healthy]).as_uri()
        for size, device in ((DESKTOP, ""), (PHONE, "_phone")):
            for scheme in ("light", "dark"):
                photograph(address, DOCS / f"report{device}_{scheme}.png", size, scheme)
        if sys.argv[1:]:
            photograph_all(pages_of_states(healthy, faulty, Path(folder)), Path(sys.argv[1]))


def pages_of_states(healthy: Run, faulty: Run, folder: Path) -> dict[str, Path]:
    """A report of a run in each state, the page of all of them, and pages of the documentation, by name."""
    early = sorted({record.step for record in healthy.history})[3]
    short = History(record for record in healthy.history if record.step <= early)
    late = [
        record._replace(value=math.nan) if record.layer and record.step > early else record
        for record in healthy.history
    ]
    runs = {
        "declining": faulty,
        "healthy": healthy,
        "too_short": healthy._replace(name="too_short", history=short, id=""),
        "blind": healthy._replace(name="blind", id="", history=History(late)),
    }
    pages = {name: write_report(run, folder / f"{name}.html") for name, run in runs.items()}
    pages["many"] = write_runs(list(runs.values()), folder / "many.html")
    site = DOCS.parent / "build/site"
    return {**pages, **{page.replace("/", "_"): path for page in SITE if (path := site / f"{page}.html").is_file()}}


def photograph_all(pages: dict[str, Path], folder: Path) -> None:
    """Each page in light and dark and on a phone."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in pages.items():
        for size, device, scheme in ((DESKTOP, "", "light"), (DESKTOP, "", "dark"), (PHONE, "_phone", "light")):
            own = path.parent.name != "site" and path.parent.parent.name != "site"
            beside = () if own else ("file:",)
            photograph(path.as_uri(), folder / f"{name}{device}_{scheme}.png", size, scheme, beside=beside)


def photograph(
    address: str, picture: Path, size: tuple[int, int], scheme: str, *, beside: tuple[str, ...] = ()
) -> None:
    """One screenshot of the top of the page, after a check of the whole; ``beside``: what it may ask for."""
    options = webdriver.ChromeOptions()
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    options.binary_location = shutil.which("chromium") or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))) as browser:
        screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        chosen = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", chosen)
        browser.get(address)
        wait_until_drawn(browser)
        check(browser, address, size[0], beside)
        browser.refresh()  # folded, as a reader finds it
        time.sleep(SETTLED_SECONDS)
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
        picture.write_bytes(with_few_colors(base64.b64decode(shot["data"])))
    print(picture)


def wait_until_drawn(browser: Any) -> None:
    """Until all figures are drawn, also those a reader unfolds, or :func:`check` reports them; then a little longer."""
    browser.execute_script("document.querySelectorAll('details').forEach(folded => folded.open = true)")
    end = time.monotonic() + MOST_SECONDS
    while browser.execute_script(UNDRAWN) and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(SETTLED_SECONDS)


def check(browser: Any, address: str, width: int, beside: tuple[str, ...]) -> None:
    """Nothing asked for elsewhere, no complaint of the browser, no figure undrawn, no page wider than the screen."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    problems = [
        f"asks for {url}" for url in asked if url != address and not url.startswith(("data:", "blob:", *beside))
    ]
    problems += [entry["message"] for entry in browser.get_log("browser")]
    if browser.execute_script("return document.documentElement.scrollWidth") > width:
        problems.append(f"is wider than {width} pixels")
    if browser.execute_script(UNDRAWN):
        problems.append("has a figure that was not drawn")
    if problems:
        sys.exit("the report " + "; ".join(problems))


if __name__ == "__main__":
    main()
