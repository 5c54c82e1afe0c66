"""What only seems to be a secret or an identifier: check digits, and words that stand for a secret in documentation.

Rule 1: each takes the bytes of a match and says how many of them count, from the first on; 0 where it is none.
Rule 2: they are linear in the match, and raise nothing.
"""

from __future__ import annotations

import string

_ALPHANUMERIC = frozenset((string.ascii_letters + string.digits).encode())
_PLACEHOLDERS = (
    "password",
    "passwd",
    "pass",
    "pwd",
    "secret",
    "changeme",
    "example",
    "token",
    "user",
    "test",
    "your",
    "key",
    "xxx",
)


def compact(found: bytes) -> str:
    """Its letters and digits alone, in upper case."""
    return bytes(byte for byte in found if byte in _ALPHANUMERIC).decode("ascii").upper()


def is_random(found: bytes) -> int:
    """A credential in a header, not the words that stand for one: it has digits, and letters of both cases or many signs."""
    text = found.decode("ascii", "replace")
    digits = sum(char.isdigit() for char in text)
    return len(found) if digits >= 2 and len(set(text)) >= 8 else 0


def is_password(found: bytes) -> int:
    """The password of an URL, not what manuals write there. `found` ends with its `@`."""
    text = found[:-1].decode("utf-8", "replace").lower()
    if text[0] in "$<{[%*" or text.strip("*x.") == "" or len(set(text)) < 3:
        return 0
    letters = text.strip("0123456789!_-")
    return (
        0
        if letters in _PLACEHOLDERS or any(letters.startswith(word) and len(text) < 14 for word in _PLACEHOLDERS[5:])
        else len(found)
    )


# --- check digits ------------------------------------------------------------------------------------------------------

_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    total = 0
    for place, char in enumerate(reversed(digits)):
        value = int(char)
        total += _DOUBLED[value] if place & 1 else value
    return total % 10 == 0


def is_card(found: bytes) -> int:
    digits = compact(found)
    return len(found) if len(set(digits)) > 1 and luhn(digits) else 0


IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HN": 28, "HR": 21, "HU": 28,
    "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20,
    "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28,
    "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24,
    "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26,
    "UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}  # fmt: skip
"""SWIFT's registry of IBAN formats: characters in all."""


def is_iban(found: bytes) -> int:
    """ISO 13616: its country's length, and 1 modulo 97. What stands after it does not count."""
    wanted = IBAN_LENGTHS.get(found[:2].decode("ascii", "replace"), 0)
    kept: list[str] = []
    for place, byte in enumerate(found):
        if byte in _ALPHANUMERIC:
            kept.append(chr(byte))
            if len(kept) == wanted:
                text = "".join(kept[4:] + kept[:4])
                after = found[place + 1 : place + 2]
                good = not after.isalnum() and int("".join(str(int(char, 36)) for char in text)) % 97 == 1
                return place + 1 if good else 0
    return 0


def is_ssn(found: bytes) -> int:
    """The United States' social security number has no check digit, but numbers that were never given out."""
    digits = compact(found)
    return len(found) if digits[:3] not in ("000", "666") and digits[3:5] != "00" and digits[5:] != "0000" else 0


def is_nino(found: bytes) -> int:
    """The United Kingdom's national insurance number: prefixes that are never given out."""
    return 0 if compact(found)[:2] in ("BG", "GB", "NK", "KN", "TN", "NT", "ZZ") else len(found)


def is_steuer_id(found: bytes) -> int:
    """Germany's tax number: of the first ten digits one comes twice or three times, no other does; ISO 7064, MOD 11,10."""
    digits = compact(found)
    often = sorted(digits[:10].count(char) for char in set(digits[:10]))
    if often[-1] not in (2, 3) or any(count > 1 for count in often[:-1]):
        return 0
    product = 10
    for char in digits[:10]:
        total = (int(char) + product) % 10 or 10
        product = total * 2 % 11
    return len(found) if (11 - product) % 10 == int(digits[10]) else 0


def is_nir(found: bytes) -> int:
    """France's number of social security: 97 less the number modulo 97; Corsica's departments count as 19 and 18."""
    digits = compact(found)
    number = int(digits[:13].replace("2A", "19").replace("2B", "18"))
    return len(found) if 97 - number % 97 == int(digits[13:]) else 0


def is_dni(found: bytes) -> int:
    """Spain's DNI and NIE: the letter is the number modulo 23."""
    text = compact(found)
    number = int(text[:-1].translate({ord("X"): "0", ord("Y"): "1", ord("Z"): "2"}))
    return len(found) if "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23] == text[-1] else 0


_ODD = dict(zip(string.digits + string.ascii_uppercase, (
    1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24,
    23,
), strict=True))  # fmt: skip


def is_codice_fiscale(found: bytes) -> int:
    """Italy's: the letters and digits at odd places have values of their own; the sum modulo 26 is the last letter."""
    text = compact(found)
    total = sum(
        _ODD[char] if place % 2 == 0 else (int(char) if char.isdigit() else ord(char) - 65)
        for place, char in enumerate(text[:15])
    )
    return len(found) if chr(65 + total % 26) == text[15] else 0


def is_bsn(found: bytes) -> int:
    """The Netherlands': the test of eleven."""
    digits = compact(found)
    total = sum((9 - place) * int(char) for place, char in enumerate(digits[:8])) - int(digits[8])
    return len(found) if total % 11 == 0 and int(digits) else 0


def is_pesel(found: bytes) -> int:
    """Poland's: a date of birth, with the century in its month, and a weighted sum."""
    digits = compact(found)
    if not (1 <= int(digits[2:4]) % 20 <= 12 and 1 <= int(digits[4:6]) <= 31):
        return 0
    total = sum(int(char) * (1, 3, 7, 9)[place % 4] for place, char in enumerate(digits[:10]))
    return len(found) if (10 - total % 10) % 10 == int(digits[10]) else 0


def is_personnummer(found: bytes) -> int:
    """Sweden's: a date of birth (the day plus 60 in a number of coordination), and Luhn's sum over the last ten."""
    digits = compact(found)[-10:]
    day = int(digits[4:6])
    good = 1 <= int(digits[2:4]) <= 12 and 1 <= (day - 60 if day > 60 else day) <= 31
    return len(found) if good and luhn(digits) else 0


def is_cpf(found: bytes) -> int:
    """Brazil's: two check digits modulo 11."""
    digits = compact(found)
    if len(set(digits)) == 1:
        return 0
    for size in (9, 10):
        total = sum(int(char) * (size + 1 - place) for place, char in enumerate(digits[:size]))
        if total * 10 % 11 % 10 != int(digits[size]):
            return 0
    return len(found)


def is_ahv(found: bytes) -> int:
    """Switzerland's: the sum of EAN-13."""
    digits = compact(found)
    total = sum(int(char) * (3 if place % 2 else 1) for place, char in enumerate(digits[:12]))
    return len(found) if (10 - total % 10) % 10 == int(digits[12]) else 0


def is_phone(found: bytes) -> int:
    """E.164: 7 to 15 digits, and not all the same."""
    digits = compact(found)
    return len(found) if 7 <= len(digits) <= 15 and len(set(digits)) > 1 else 0
