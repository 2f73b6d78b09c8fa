"""Which token, through which module: a PKCS#11 URI, of which we take a small part.

    pkcs11:token=LABEL[;serial=S][;id=%..;type=private]?module-path=/absolute/path[&pin-value=PIN]

Everything else in RFC 7512 is refused, `pin-source` above all: it may name a file, or a program to run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from not_fed.errors import InputError
from not_fed.keys.secret import Secret

SCHEME = "pkcs11:"
MAX_URI_CHARACTERS = 2048
_PATH, _QUERY = frozenset({"token", "serial", "id", "type"}), frozenset({"module-path", "pin-value"})


class TokenUriRefused(InputError):
    """This is not a PKCS#11 URI that names a token and a module."""

    code = "token-uri"


@dataclass(frozen=True, slots=True)
class TokenUri:
    """A token by its label (and serial number, if two have one label), its module, and a key in it."""

    token: str
    module_path: Path
    serial: str | None = None
    object_id: bytes | None = None

    def text(self, *, pin: Secret | None = None) -> str:
        """In the one spelling that we write."""
        path = [f"token={quote(self.token, safe='')}"]
        if self.serial is not None:
            path.append(f"serial={quote(self.serial, safe='')}")
        if self.object_id is not None:
            path += [f"id={''.join(f'%{byte:02X}' for byte in self.object_id)}", "type=private"]
        query = [f"module-path={quote(str(self.module_path), safe='/')}"]
        if pin is not None:
            query.append(f"pin-value={quote(pin.reveal(), safe='')}")
        return f"{SCHEME}{';'.join(path)}?{'&'.join(query)}"


def read_token_uri(text: str) -> tuple[TokenUri, Secret | None]:
    """The parts of a URI, and its PIN if it carries one; raises TokenUriRefused, which never quotes it."""
    if not text.startswith(SCHEME) or len(text) > MAX_URI_CHARACTERS or not text.isascii() or not text.isprintable():
        raise _refused("something else")
    path_text, _, query_text = text.removeprefix(SCHEME).partition("?")
    path, query = _attributes(path_text, ";", _PATH), _attributes(query_text, "&", _QUERY)
    if not path.get("token") or not query.get("module-path"):
        raise _refused("no token or no module-path")
    if path.get("type", b"private") != b"private":
        raise _refused("another type than private")
    try:
        token, serial = path["token"].decode(), path["serial"].decode() if "serial" in path else None
        module_path = Path(query["module-path"].decode())
    except UnicodeDecodeError:
        raise _refused("text that is not UTF-8") from None
    pin = Secret(query["pin-value"]) if "pin-value" in query else None
    return TokenUri(token=token, serial=serial, module_path=module_path, object_id=path.get("id")), pin


def _attributes(text: str, separator: str, known: frozenset[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in text.split(separator) if text else []:
        name, equals, value = part.partition("=")
        if not equals or name not in known or name in found:
            raise _refused("an attribute that is unknown here, or twice")
        found[name] = unquote_to_bytes(value)
    return found


def _refused(got: str) -> TokenUriRefused:
    return TokenUriRefused(
        where="PKCS#11 URI", expected="pkcs11:token=LABEL?module-path=/absolute/path", got=got,
        hint="the PIN comes from --pin-file, --pin-fd or the terminal; no other attribute of RFC 7512 is taken",
    )  # fmt: skip
