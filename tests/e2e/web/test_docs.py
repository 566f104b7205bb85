"""The API's own page: Swagger UI under a strict policy, and a request from it with the reader's session."""

import re

from playwright.sync_api import expect

from .conftest import OpenPage


def test_the_api_is_read_and_tried_in_the_browser(open_page: OpenPage) -> None:
    page = open_page()
    elsewhere: list[str] = []
    page.on("request", lambda request: elsewhere.append(request.url) if "127.0.0.1" not in request.url else None)
    page.goto("/docs")
    operation = page.locator(".opblock", has_text="/analyze-timeblock")
    expect(operation).to_be_visible()
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.locator("tr", has_text="wait").locator("input").first.fill("0")
    operation.get_by_role("button", name="Execute").click()
    # With the example's block; the session alone would not do, the page's token goes with it.
    answer = operation.locator(".live-responses-table tbody tr.response").first
    expect(answer.locator(".response-col_status")).to_contain_text("202")
    expect(answer).to_contain_text('"state": "pending"')
    assert elsewhere == []


def test_it_is_as_dark_as_the_other_pages(open_page: OpenPage) -> None:
    page = open_page(color_scheme="dark")
    page.goto("/docs")
    html = page.locator("html")
    expect(html).to_have_class("dark-mode")
    page.emulate_media(color_scheme="light")
    expect(html).not_to_have_class(re.compile("dark-mode"))
    page.get_by_role("button", name="Dark", exact=True).click()
    expect(html).to_have_class("dark-mode")
