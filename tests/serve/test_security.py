"""pytest tests/serve/test_security.py: Host, Origin and token; addresses; headers."""

import pytest

from vismoe.serve import Settings, read_token

from .conftest import IMAGES, encoded, files, refusal

PNG = encoded(IMAGES[0])
TOKEN = "0123456789abcdef-secret"


UNKNOWN = ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "a@127.0.0.1", "127.0.0.1:x", "[::1"]
FOREIGN = ["https://evil.example", "null", "http://127.0.0.1:3000", "http://localhost:8000", "file://", "http://["]


@pytest.mark.parametrize("host", [*UNKNOWN, "192.168.0.7"])
def test_unknown_hosts(shared, host):
    """With DNS rebinding a foreign page reaches the service under the page's own name."""
    for path in ("/", "/healthz", "/v1/model"):
        assert refusal(shared.get(path, headers={"Host": host})) == (421, "unknown_host")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9", "localhost:8000", "LOCALHOST", "[::1]:8000"])
def test_known_hosts(shared, host):
    assert shared.get("/healthz", headers={"Host": host}).status_code == 200


def test_further_hosts(start):
    """The name of a proxy is allowed by name; where all addresses are listened at, those in numbers are known."""
    client = start(host="0.0.0.0", public=True, allow_hosts=["vision.example.org"])
    for host in ("vision.example.org", "vision.example.org:443", "192.168.0.7:8000", "localhost"):
        assert client.get("/healthz", headers={"Host": host}).status_code == 200
    assert refusal(client.get("/healthz", headers={"Host": "other.example.org"})) == (421, "unknown_host")
    inside = {"Host": "10.0.0.1:8000", "Origin": "https://vision.example.org"}
    assert client.get("/v1/model", headers=inside).status_code == 200


@pytest.mark.parametrize("origin", [*FOREIGN, "http://127.0.0.1:8000, http://evil.example"])
def test_foreign_origins(shared, origin):
    """A page of another site may POST a form without asking: it burns no processor time. Another port is another
    site."""
    response = shared.post("/v1/predict", files=files(PNG), headers={"Origin": origin})
    assert refusal(response) == (403, "foreign_origin")
    assert "access-control-allow-origin" not in response.headers


def test_own_page(shared):
    """Its requests are accepted; links from elsewhere lead to the page, and not to the models."""
    own = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
    assert shared.post("/v1/predict", files=files(PNG), headers=own).status_code == 200
    assert shared.get("/v1/model", headers={"Sec-Fetch-Site": "none"}).status_code == 200
    foreign = {"Sec-Fetch-Site": "cross-site"}
    assert shared.get("/", headers=foreign).status_code == 200
    assert refusal(shared.get("/v1/experts", headers=foreign)) == (403, "foreign_origin")
    assert refusal(shared.get("/v1/model", headers={"Sec-Fetch-Site": "same-site"})) == (403, "foreign_origin")


def test_token(start):
    """Everything but /healthz and the page's files needs it; in an address it counts for nothing."""
    client = start(token=TOKEN)
    assert client.get("/healthz").status_code == 200
    assert client.get("/").status_code == 200
    for path in ("/v1/model", "/metrics", "/readyz", "/openapi.json", "/docs", "/nowhere"):
        response = client.get(path)
        assert refusal(response) == (401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
        assert client.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code != 401
    for wrong in (TOKEN, "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer é"):
        headers = {"Authorization": wrong.encode()}
        assert refusal(client.get("/v1/model", headers=headers)) == (401, "unauthorized")
    assert refusal(client.get("/v1/model", params={"token": TOKEN})) == (401, "unauthorized")
    assert refusal(client.post("/v1/predict", files=files(PNG))) == (401, "unauthorized")
    described = client.get("/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"}).json()
    assert described["security"] == [{"token": []}]
    assert described["paths"]["/healthz"]["get"]["security"] == []


def test_public_addresses_need_a_token():
    """Or the word that everybody may use the service."""
    for host in ("0.0.0.0", "::", "", "192.168.0.7", "vision.example.org"):
        with pytest.raises(ValueError, match="--token-file"):
            Settings(host=host)
        Settings(host=host, token=TOKEN)
        Settings(host=host, public=True)
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        Settings(host=host)
    assert TOKEN not in repr(Settings(token=TOKEN))


def test_settings_out_of_range():
    for wrong in (
        {"queue": 0},
        {"batch_size": 0},
        {"max_body": 0},
        {"port": 70_000},
        {"max_wait_ms": -1.0},
        {"request_timeout": 0.0},
        {"allow_hosts": ["http://a"]},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong)).removesuffix("s")):
            Settings(**wrong)


def test_token_files(tmp_path):
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_token(file) == TOKEN
    for wrong in ("", "short", "two words of a token", "ümläute-sind-nicht-dabei"):
        file.write_text(wrong)
        with pytest.raises(ValueError, match="at least 16"):
            read_token(file)
    with pytest.raises(FileNotFoundError, match="openssl"):
        read_token(tmp_path / "none")


def test_headers_of_every_answer(shared):
    """Answers and errors: no sniffing, a strict policy, an id; the policy allows no script in the page's text."""
    for path in ("/", "/v1/model", "/nowhere", "/docs", "/page/none.js"):
        headers = shared.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-request-id"]
    given = {"X-Request-ID": "mine-1"}
    assert shared.get("/healthz", headers=given).headers["x-request-id"] == "mine-1"
    forged = {"X-Request-ID": 'a" evil'}
    assert "evil" not in shared.get("/healthz", headers=forged).headers["x-request-id"]
