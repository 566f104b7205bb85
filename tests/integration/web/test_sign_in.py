"""Every way in, and what keeps others out."""

from tests.support.web import Site


def test_a_visitor_signs_in_and_sees_the_incidents(site: Site) -> None:
    visitor = site.browser()
    answer = visitor.get("/incidents")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=%2Fincidents")
    answer = visitor.sign_in(next="/incidents")
    assert (answer.status_code, answer.headers["location"]) == (303, "/incidents")
    page = visitor.get("/incidents")
    assert page.status_code == 200
    assert "All is well" in page.text
