#!/usr/bin/env bash
# One expects: phonenumbers' `parse` refuses a sentence that has no phone number in it, or is_valid_number says no to it.
# What happens: once a text has three letters behind a digit, all of its letters become the digits of their keys: "order 4711 please" with
#   region DE is +49 4711 753273, and "order 2023 please" with US is +1 202 375 3273, both valid, both somebody's. Words behind a number join
#   it: "030 123456 ab 8 Uhr" is +49 30 123456 22 8 847, valid too. PhoneNumberMatcher finds no number in the first two, and the
#   right one in the third.
# Why it matters: what a caller says or a model passes to a tool ("call me back at …") is parsed and checked in just this way; the
#   agent then dials or texts a stranger, and every check was green. Only a text of digits and marks is safe to parse.
# Versions: phonenumbers 9.0.43.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" phonenumbers==9.0.43

cat > "$work/finding.py" <<'PY'
from importlib.metadata import version

import phonenumbers
from phonenumbers import PhoneNumberFormat, PhoneNumberMatcher

# said, with region: what it is parsed as, and the numbers that the matcher finds in it
SAID = {
    ("order 4711 please", "DE"): ("+494711753273", []),
    ("order 2023 please", "US"): ("+12023753273", []),
    ("order 2079 please", "GB"): ("+442079753273", []),
    ("room 204 please", "FR"): ("+33204753273", []),
    ("030 123456 ab 8 Uhr", "DE"): ("+4930123456228847", ["+4930123456"]),
}


def e164(number):
    return phonenumbers.format_number(number, PhoneNumberFormat.E164)


print("phonenumbers", version("phonenumbers"))
for (text, region), expected in SAID.items():
    number = phonenumbers.parse(text, region)
    valid = phonenumbers.is_valid_number(number)
    found = [e164(match.number) for match in PhoneNumberMatcher(text, region)]
    print(f"{text!r} in {region}: parsed as {e164(number)}, valid {valid}; PhoneNumberMatcher finds {found}")
    assert valid and (e164(number), found) == expected, f"CHANGED: {text!r}"
print("as described")
PY
timeout 60 "$work/venv/bin/python" "$work/finding.py"
