"""Personal data that is known by its shape, in groups an operator chooses from: none is on by default.

Rule 1: what has a check digit is checked (`checks.py`); what has none must have a shape that little else has.
Rule 2: order matters where two match at one place: the first one whose check holds names it.
Rule 3: names, addresses and dates of birth are not here: no pattern tells them from other words.
"""

from __future__ import annotations

from clawproxy_sanitize import checks
from clawproxy_sanitize.catalogue import Shape, token

_BSN_LEAD = r"(?:\b|\\[nrtbf])(?i:(?:bsn|burgerservicenummer|sofinummer)\b[^0-9\n]{0,20})"
_CODE = r"[0-9LMNPQRSTUVlmnpqrstuv]"
_COUNTRIES = "|".join(checks.IBAN_LENGTHS)
_DATE = r"[0-9]{2}(?:0[1-9]|1[0-2])[0-9]{2}"

PERSONAL: tuple[Shape, ...] = (
    token("mail", r"[A-Za-z0-9][A-Za-z0-9._%+-]*@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,24}\b"),
    token("iban", rf"(?:{_COUNTRIES})[0-9]{{2}}(?: ?[A-Z0-9]{{4}}){{2,7}}(?: ?[A-Z0-9]{{1,3}})?\b", checks.is_iban),
    token(
        "card",
        r"(?:[2-6][0-9]{3}(?:[ -]?[0-9]{4}){3}|3[47][0-9]{2}[ -]?[0-9]{6}[ -]?[0-9]{5}|3[068][0-9]{2}[ -]?[0-9]{6}[ -]?[0-9]{4}"
        r"|6[0-9]{18})\b",
        checks.is_card,
    ),
    token("us_ssn", r"[0-8][0-9]{2}(?:-[0-9]{2}-| [0-9]{2} )[0-9]{4}\b", checks.is_ssn),
    token("uk_nino", r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]\b", checks.is_nino),
    token("de_steuer_id", r"[1-9](?:[0-9]{10}|[0-9] [0-9]{3} [0-9]{3} [0-9]{3})\b", checks.is_steuer_id),
    token(
        "fr_nir",
        r"[12] ?[0-9]{2} ?(?:0[1-9]|1[0-2]|[2-9][0-9]) ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}\b",
        checks.is_nir,
    ),
    token("es_dni", r"(?:[0-9]{8}|[XYZ]-?[0-9]{7})-?[A-HJ-NP-TV-Z]\b", checks.is_dni),
    token(
        "it_codice_fiscale",
        rf"[A-Za-z]{{6}}{_CODE}{{2}}[ABCDEHLMPRSTabcdehlmprst]{_CODE}{{2}}[A-Za-z]{_CODE}{{3}}[A-Za-z]\b",
        checks.is_codice_fiscale,
    ),
    # Nine digits with a sum that every eleventh number has: only where the text says what it is.
    Shape("nl_bsn", _BSN_LEAD + r"[0-9]{4}\.?[0-9]{2}\.?[0-9]{3}\b", _BSN_LEAD, checks.is_bsn),
    token("pl_pesel", r"[0-9]{11}\b", checks.is_pesel),
    token("se_personnummer", rf"(?:(?:19|20)?{_DATE}[-+]|(?:19|20){_DATE})[0-9]{{4}}\b", checks.is_personnummer),
    token("br_cpf", r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}\b", checks.is_cpf),
    token("ch_ahv", r"756\.[0-9]{4}\.[0-9]{4}\.[0-9]{2}\b", checks.is_ahv),
    Shape(
        "phone",
        r"(?:\+[1-9](?:[ ().-]{0,2}[0-9]){6,14}|\(?\b[2-9][0-9]{2}\)?[ .-][2-9][0-9]{2}[ .-][0-9]{4})\b",
        "",
        checks.is_phone,
    ),
)
