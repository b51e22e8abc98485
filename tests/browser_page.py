"""What a person does on an OpenAPI page: the part of `make browser` that drives Chromium.

It is run by the Python beside Playwright, without Keysmith: URL, operation, text of the answer, and
folder of Swagger UI as arguments, and the raw key on standard input.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Locator, Page, Route, expect, sync_playwright

TIMEOUT_MS = 30_000
SCHEMES = ("Keysmith", "KeysmithHeader")


@contextmanager
def opened(url: str, tools: Path) -> Iterator[Page]:
    """The page, with Swagger UI from the folder and nothing else from anywhere."""

    def serve(route: Route) -> None:
        file = tools / "package" / route.request.url.rsplit("/", 1)[-1]
        if route.request.url.startswith(url):
            route.continue_()
        elif "swagger-ui-dist" in route.request.url and file.exists():
            route.fulfill(path=file)
        else:
            route.abort()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox"],  # which root has not; the only page is ours
        )
        page = browser.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        expect.set_options(timeout=TIMEOUT_MS)
        page.route("**/*", serve)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{url}/docs")
        yield page
        assert errors == []
        browser.close()


def find(page: Page, operation: str) -> Locator:
    """The operation, ready to be tried out."""
    method, path = operation.split()
    block = page.locator(f".opblock-{method.lower()}").filter(
        has=page.locator(f'.opblock-summary-path[data-path="{path}"]')
    )
    block.locator(".opblock-summary-control").click()
    block.get_by_role("button", name="Try it out").click()
    return block


def call(block: Locator, status: int, text: str) -> None:
    """Executes the operation; the person sees this status, and an answer with this text."""
    clear = block.get_by_role("button", name="Clear")
    if clear.is_visible():
        clear.click()
    block.get_by_role("button", name="Execute").click()
    answer = block.locator(".live-responses-table .response").first
    expect(answer.locator(".response-col_status")).to_contain_text(str(status))
    expect(answer.locator(".response-col_description .microlight").first).to_contain_text(text)


@contextmanager
def dialog(page: Page, scheme: str) -> Iterator[Locator]:
    """Where a person authorises with this scheme; closed at the end."""
    page.locator(".auth-wrapper .btn.authorize").click()
    yield page.locator(".modal-ux .auth-container").filter(
        has=page.locator("h4", has_text=re.compile(rf"^{scheme}\b"))
    )
    page.locator(".modal-ux .btn-done").first.click()


def main(url: str, operation: str, text: str, tools: Path, raw_key: str) -> None:
    """Without a key 401; with it, in either header, 200."""
    with opened(url, tools) as page:
        block = find(page, operation)
        call(block, 401, "missing_key")
        for scheme in SCHEMES:
            with dialog(page, scheme) as form:
                form.locator("input").fill(raw_key)
                form.get_by_role("button", name="Apply credentials").click()
            call(block, 200, text)
            with dialog(page, scheme) as form:
                form.get_by_role("button", name="Remove authorization").click()
        call(block, 401, "missing_key")
    print(f"{operation} at {url}/docs: 401 without a key, 200 with one in either header")


if __name__ == "__main__":
    main(*sys.argv[1:4], Path(sys.argv[4]), sys.stdin.read())
