"""The three product routes, checked from outside: what any backend of these clients must do.

By default it starts the embedded backend. It can be pointed at any other, as often as you like:

    SCRIPTO_CONTRACT_URL=https://backend.example SCRIPTO_CONTRACT_MAILDIR=/var/mail/contract \\
        pytest tests/test_contract.py

Mail to any address at SCRIPTO_CONTRACT_DOMAIN (example.com, if not set) has to arrive in that
Maildir. Every test signs in with emails of its own, so nothing that is there is touched. It is
about seventy requests; where the backend asks for patience with 429, the suite waits.
"""
import calendar
import email
import email.policy
import email.utils
import http.client
import json
import os
import pathlib
import re
import secrets
import time
import urllib.parse

import pytest

from conftest import EDGES, Backend, Scripto, python_id, wait_until, wrong_code

URL = os.environ.get("SCRIPTO_CONTRACT_URL")
MAILDIR = os.environ.get("SCRIPTO_CONTRACT_MAILDIR")
DOMAIN = os.environ.get("SCRIPTO_CONTRACT_DOMAIN") or "example.com"
MAIL_SECONDS = 60  # that a mail may be on its way
LONGEST_WAIT = 61  # seconds that a 429 may ask for: more is no limit per address

REQUEST, COMPLETE, ME = "/api/cli/login-request", "/api/cli/login-complete", "/api/auth/me"


class Reply:
    """A reply: status, headers, and the JSON object that every body is."""

    def __init__(self, response):
        self.status, self.headers = response.status, response.headers
        self.text = response.read().decode("utf-8")
        assert self.headers.get_content_type() == "application/json", self.text
        self.value = json.loads(self.text)

    @property
    def data(self):
        """What an envelope of success holds."""
        assert (self.status, self.value["success"]) == (200, True), self.text
        return self.value["data"]

    @property
    def error(self):
        """(status, code) of an envelope of failure."""
        error = self.value["error"]
        assert self.value["success"] is False and error["message"].strip(), self.text
        assert isinstance(error.get("nextAction", ""), str), self.text
        return self.status, error["code"]


class Site:
    """A backend, known by its URL and by the Maildir that its mail arrives in."""

    def __init__(self, url, maildir):
        self.url, self.maildir = url.rstrip("/"), pathlib.Path(maildir)

    def request(self, method, path, body=None, headers=()):
        """One request; `body` goes as it is or, an object, as JSON."""
        reply = self.try_request(method, path, body, dict(headers))
        wait = reply.headers.get("Retry-After", "")
        if reply.status == 429 and wait.isdigit() and int(wait) <= LONGEST_WAIT:
            time.sleep(int(wait))
            reply = self.try_request(method, path, body, dict(headers))
        return reply

    def try_request(self, method, path, body, headers):
        parts = urllib.parse.urlsplit(self.url)
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(parts.hostname, parts.port, timeout=30)
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, parts.path + path, body, headers)
            return Reply(connection.getresponse())
        finally:
            connection.close()

    def ask(self, address):
        """Requests a code; returns the one that the mail brought."""
        before = set(self.mails())
        self.request("POST", REQUEST, {"email": address}).data
        return wait_until(lambda: self.code_in_new_mail(address, before), MAIL_SECONDS, "the mail")

    def mails(self):
        """{name: path}; a reader may move a mail from new/ to cur/ and put flags behind it."""
        paths = [path for part in ("new", "cur") for path in (self.maildir / part).glob("*")]
        return {path.name.partition(":")[0]: path for path in paths}

    def code_in_new_mail(self, address, before):
        for name, path in self.mails().items():
            if name in before:
                continue
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue  # it was moved just now, and will be seen in its new place
            message = email.message_from_bytes(content, policy=email.policy.default)
            if email.utils.parseaddr(message["To"])[1].lower() == address.lower():
                return code_of(message)
        return None

    def enter(self, address, code, **more):
        return self.request("POST", COMPLETE, dict(more, email=address, otp=code))

    def me(self, authorization=None):
        headers = {"Authorization": authorization} if authorization else {}
        return self.request("GET", ME, headers=headers)

    def sign_in(self, address):
        return self.enter(address, self.ask(address)).data


def code_of(message):
    """The six digits in the subject, else those in the body."""
    body = message.get_body(("plain", "html"))
    for text in (message["Subject"], body.get_content() if body else ""):
        match = re.search(r"(?<!\d)\d{6}(?!\d)", text or "")
        if match:
            return match.group()
    raise AssertionError("there is no code in the mail:\n%s" % message)


@pytest.fixture(
    scope="module",
    params=[None] if URL else EDGES,
    ids=lambda python: python_id(python) if python else "live",
)
def site(request, tmp_path_factory):
    """The backend under test: the live one, or an embedded one under each edge interpreter."""
    if URL:
        assert MAILDIR, "set SCRIPTO_CONTRACT_MAILDIR to where the mail of %s arrives" % URL
        yield Site(URL, MAILDIR)
        return
    folder = tmp_path_factory.mktemp("contract")
    backend = Backend(Scripto(request.param, folder / "home"), folder / "backend")
    yield Site(backend.url, backend.maildir)
    backend.stop()


@pytest.fixture
def address():
    """An email that nobody has used before."""
    return "contract-%s@%s" % (secrets.token_hex(8), DOMAIN)


@pytest.fixture(scope="module")
def account(site):
    """Somebody who has signed in: the data of login-complete."""
    return site.sign_in("contract-%s@%s" % (secrets.token_hex(8), DOMAIN))


# ---- login-request ------------------------------------------------------------


def test_a_request_is_answered_with_the_email_and_never_with_the_code(site, address):
    before = set(site.mails())
    reply = site.request("POST", REQUEST, {"email": address})
    assert reply.data["ok"] is True and reply.data["email"] == address
    code = wait_until(lambda: site.code_in_new_mail(address, before), MAIL_SECONDS, "the mail")
    assert code not in reply.text


def test_a_known_email_is_answered_like_an_unknown_one(site, account):
    reply = site.request("POST", REQUEST, {"email": account["email"]})
    assert reply.data["ok"] is True and reply.data["email"] == account["email"]


BAD_EMAILS = {
    "missing": {},
    "empty": {"email": ""},
    "a number": {"email": 7},
    "no at": {"email": "you.example.com"},
    "two ats": {"email": "you@home@example.com"},
    "no local part": {"email": "@example.com"},
    "no domain": {"email": "you@"},
    "white space": {"email": "you there@example.com"},
    "a header of its own": {"email": "you@example.com\r\nBcc: me@example.com"},
    "a null byte": {"email": "you\0@example.com"},
    "a percent sign": {"email": "you%there.example@example.com"},
    "an exclamation mark": {"email": "there.example!you@example.com"},
    "255 characters": {"email": "y" * (254 - len("@example.com") + 1) + "@example.com"},
}


@pytest.mark.parametrize("body", BAD_EMAILS.values(), ids=BAD_EMAILS)
def test_a_bad_email_is_refused(site, body):
    assert site.request("POST", REQUEST, body).error == (400, "invalid-argument")


@pytest.mark.parametrize("body", [b"", b"email=you", b"[]", b'{"email": "\xff@example.com"}'])
def test_a_body_that_is_no_json_object_in_utf8_is_refused(site, body):
    path = COMPLETE if body == b"[]" else REQUEST
    assert site.request("POST", path, body).error == (400, "invalid-argument")


# ---- login-complete -----------------------------------------------------------


def test_the_right_code_buys_a_key_that_says_who_it_is(site, address):
    data = site.sign_in(address)
    assert re.match(r"scripto_[A-Za-z0-9_-]{43,}\Z", data["apiKey"])  # 32 random bytes or more
    assert data["keyId"] and data["userId"] and data["email"] == address
    user = site.me("Bearer " + data["apiKey"]).value["user"]
    assert (user["id"], user["email"]) == (data["userId"], address)


def test_a_second_sign_in_is_the_same_user_with_a_new_key_and_the_first_key_lives(site, account):
    again = site.sign_in(account["email"])
    assert again["userId"] == account["userId"]
    assert again["apiKey"] != account["apiKey"] and again["keyId"] != account["keyId"]
    assert site.me("Bearer " + account["apiKey"]).status == 200


def test_emails_are_compared_in_lower_case(site, account):
    assert site.sign_in(account["email"].upper())["userId"] == account["userId"]


def test_two_emails_are_two_users(site, account, address):
    assert site.sign_in(address)["userId"] != account["userId"]


def test_a_name_for_the_key_is_taken_and_what_is_unknown_does_no_harm(site, address):
    assert site.enter(address, site.ask(address), name="laptop ü", shoeSize=43).data["apiKey"]


def test_a_wrong_code_is_refused_and_the_right_one_still_good(site, address):
    code = site.ask(address)
    assert site.enter(address, wrong_code(code)).error == (400, "invalid-argument")
    assert site.enter(address, code).data["apiKey"]


def test_a_code_is_good_for_one_key(site, address):
    code = site.ask(address)
    assert site.enter(address, code).status == 200
    assert site.enter(address, code).error == (400, "invalid-argument")


def test_the_code_of_the_newest_request_is_good(site, address):
    """What a backend does with the one before is its own business: the embedded one takes it."""
    old = site.ask(address)
    new = wait_until(lambda: other_than(old, site.ask(address)), what="another code")
    assert site.enter(address, new).status == 200


@pytest.mark.skipif(bool(URL), reason="a rule of the embedded backend")
def test_late_mail_does_no_harm(site, address):
    """The code before the newest is good, too; the one before that is not; a sign-in ends all."""
    first, second, third = (site.ask(address) for _ in range(3))
    if len({first, second, third}) == 3:
        assert site.enter(address, first).error == (400, "invalid-argument")
    assert site.enter(address, second).status == 200
    assert site.enter(address, third).error == (400, "invalid-argument")


def other_than(old, new):
    """The new code, None if chance made it the old one."""
    return new if new != old else None


def test_a_code_is_good_for_its_own_email_only(site, account, address):
    assert site.enter(account["email"], site.ask(address)).error == (400, "invalid-argument")


def test_the_right_code_is_refused_after_three_wrong_ones(site, address):
    code = site.ask(address)
    for _ in range(3):
        site.enter(address, wrong_code(code))
    assert site.enter(address, code).error in [
        (400, "invalid-argument"),
        (429, "resource-exhausted"),
    ]


def test_where_there_are_tickets_no_stranger_ends_a_code(site, address):
    """Three wrong guesses without the ticket leave it to who has it."""
    before = set(site.mails())
    ticket = site.request("POST", REQUEST, {"email": address}).data.get("ticket")
    code = wait_until(lambda: site.code_in_new_mail(address, before), MAIL_SECONDS, "the mail")
    if ticket is None:
        pytest.skip("this backend has no tickets")
    assert isinstance(ticket, str) and len(ticket) >= 16
    for _ in range(3):
        site.enter(address, wrong_code(code))
    assert site.enter(address, code, ticket=ticket).status == 200


def test_a_ticket_of_somebody_else_s_making_does_no_harm(site, address):
    """As a backend that knows none takes it."""
    assert site.enter(address, site.ask(address), ticket="x" * 22).status == 200


def test_where_keys_can_end_it_is_said_when(site, address):
    """In the answer and in the list; a backend that cannot do so says nothing."""
    data = site.enter(address, site.ask(address), expiresIn=7 * 24 * 3600).data
    (key,) = site.request("GET", "/api/keys", headers=bearer(data)).data["keys"]
    if data.get("expiresAt") is None:
        assert key["expiresAt"] is None
        pytest.skip("keys of this backend last")
    assert key["expiresAt"] == data["expiresAt"]
    left = calendar.timegm(time.strptime(key["expiresAt"][:19], "%Y-%m-%dT%H:%M:%S")) - time.time()
    assert 0 < left < 7 * 24 * 3600 + 60 and site.me(bearer(data)["Authorization"]).status == 200


BAD_CODES = {
    "missing": {},
    "empty": {"otp": ""},
    "five digits": {"otp": "12345"},
    "seven digits": {"otp": "1234567"},
    "letters": {"otp": "abcdef"},
    "digits of another script": {"otp": "１２３４５６"},
}


@pytest.mark.parametrize("otp", BAD_CODES.values(), ids=BAD_CODES)
def test_a_missing_or_malformed_code_is_refused(site, address, otp):
    reply = site.request("POST", COMPLETE, dict(otp, email=address))
    assert reply.error == (400, "invalid-argument")


def test_a_code_without_an_email_is_refused(site):
    assert site.request("POST", COMPLETE, {"otp": "123456"}).error == (400, "invalid-argument")


# ---- auth/me ------------------------------------------------------------------


def test_me_has_its_own_shape(site, account):
    reply = site.me("Bearer " + account["apiKey"])
    assert reply.status == 200 and {"id", "email", "name"} <= set(reply.value["user"])
    assert "success" not in reply.value and account["apiKey"] not in reply.text


@pytest.mark.parametrize(
    "form",
    [None, "Bearer", "Bearer scripto_", "Bearer {key}x", "Bearer {short}", "Bearer {bare}",
     "Basic {key}", "{key}", "Bearer scripto_%s" % ("0" * 43)],
)  # fmt: skip
def test_what_is_not_a_key_is_unauthorized_in_its_own_shape(site, account, form):
    key = account["apiKey"]
    bare = key[len("scripto_") :]
    reply = site.me(form and form.format(key=key, short=key[:-1], bare=bare))
    assert (reply.status, reply.value) == (401, {"error": "Unauthorized"})


# ---- keys ---------------------------------------------------------------------


def bearer(data):
    return {"Authorization": "Bearer " + data["apiKey"]}


def test_keys_are_listed_without_their_secret(site, address):
    data = site.enter(address, site.ask(address), name="laptop").data
    reply = site.request("GET", "/api/keys", headers=bearer(data))
    (key,) = reply.data["keys"]
    assert (key["id"], key["name"]) == (data["keyId"], "laptop")
    assert key["start"] == data["apiKey"][len("scripto_") :][:6]
    assert {"createdAt", "lastUsedAt", "expiresAt"} <= set(key)
    assert data["apiKey"] not in reply.text


def test_a_revoked_key_is_dead_and_the_others_live(site, address):
    lost, kept = site.sign_in(address), site.sign_in(address)
    reply = site.request("DELETE", "/api/keys/" + lost["keyId"], headers=bearer(kept))
    assert reply.data == {"id": lost["keyId"], "revoked": True}
    assert site.me("Bearer " + lost["apiKey"]).status == 401
    assert site.me("Bearer " + kept["apiKey"]).status == 200


def test_nobody_revokes_the_key_of_another(site, account, address):
    data = site.sign_in(address)
    for key_id in (account["keyId"], "key_unknown"):
        reply = site.request("DELETE", "/api/keys/" + key_id, headers=bearer(data))
        assert reply.error == (404, "not-found")
    assert site.me("Bearer " + account["apiKey"]).status == 200


def test_keys_need_a_key(site, account):
    assert site.request("GET", "/api/keys").error == (401, "unauthenticated")
    path = "/api/keys/" + account["keyId"]
    assert site.request("DELETE", path).error == (401, "unauthenticated")


# ---- who is let in (the embedded backend) -------------------------------------


@pytest.mark.skipif(bool(URL), reason="a flag of the embedded backend")
def test_allow_lets_in_a_domain_and_an_address_and_nobody_else(tmp_path):
    flags = ("--allow", "@example.com", "--allow", "guest@example.org")
    backend = Backend(Scripto(EDGES[-1], tmp_path / "home"), tmp_path / "backend", *flags)
    try:
        site = Site(backend.url, backend.maildir)
        assert site.sign_in("You@Example.com")["apiKey"] and site.sign_in("guest@example.org")
        refusal = site.request("POST", REQUEST, {"email": "you@example.org"})
        assert refusal.error == (403, "permission-denied")
        hint = "ask the operator of %s to allow it, or use another email" % backend.url
        assert refusal.value["error"]["nextAction"] == hint
    finally:
        backend.stop()


# ---- the client ---------------------------------------------------------------


def run(scripto, *words):
    """The data of a command's answer; once more after a while if that may help (status 3)."""
    passed = {name: os.environ.get(name) for name in ("SCRIPTO_ALLOW_HTTP", "SSL_CERT_FILE")}
    result = scripto.run(*words, "--json", env=passed)
    if result.status == 3:
        time.sleep(LONGEST_WAIT)
        result = scripto.run(*words, "--json", env=passed)
    return result.data


def test_the_command_line_signs_in(site, scripto, address):
    before, to = set(site.mails()), ["--email", address, "--api-url", site.url]
    run(scripto, "auth", "login-request", *to)
    code = wait_until(lambda: site.code_in_new_mail(address, before), MAIL_SECONDS, "the mail")
    assert run(scripto, "auth", "login-complete", "--code", code, *to)["email"] == address
    assert run(scripto, "whoami")["user"]["email"] == address
