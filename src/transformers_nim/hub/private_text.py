# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Find what must not be published in texts: secrets, and paths of somebody's machine."""

import re
from collections.abc import Callable, Iterable

from ..utils.extras import require


# The first name in a path; with a letter, so that "/8/255" is none.
_PART = r"(?=[^\s/]*[^\W\d_])[\w.@+~-]+"
# Where files of people lie. Other folders are told by what stands before them.
_ROOTS = (
    "home|root|Users|tmp|mnt|var|opt|srv|media|data|work|workspace|scratch|content|lustre|Volumes|kaggle|storage|gpfs"
)
_ABSOLUTE = re.compile(
    # In an address, "/" follows a host, a ":" or another "/"; but an address of a file is one of this machine.
    rf"\bfile:/{{1,3}}{_PART}(?:/{_PART})*"
    rf"|(?<![\w/.~-])/(?:{_ROOTS})/[^\s\"'`,;)]+"
    # Neither links within a site, nor closing brackets and placeholders as in "{folder}/a/b", nor what all have.
    r"|(?<![\w/.~)\]}>%*+$<-])(?<!\]\()(?<!href=[\"'])(?<!src=[\"'])"
    rf"/(?!(?:dev|proc|sys|bin|usr/bin|path/to)/){_PART}(?:/[\w.@+~-]+)+"
)
_WINDOWS = re.compile(r"\b[A-Za-z]:\\{1,2}[A-Za-z]\w*")

# Detectors of detect-secrets that take version numbers and hashes for secrets.
_LEFT_OUT = {"IPPublicDetector", "HexHighEntropyString", "Base64HighEntropyString"}
# Names and paths of runs can be as varied as random strings, which are therefore searched apart: without addresses,
# which hold identifiers of files and pictures, and without the words of class names. Then only random strings have a
# long run of digits, small and capital letters; hashes have no capital ones.
_NOT_RANDOM = re.compile(r"(?:https?://|data:)\S+|[A-Z][a-z]{4,}")
_RANDOM_RUN = re.compile(r"(?=[a-zA-Z]{0,60}[0-9])(?=[a-z0-9]{0,60}[A-Z])(?=[A-Z0-9]{0,60}[a-z])[A-Za-z0-9]{20,}")
# Of tokens with 34 random characters, 99 of 100 are above this.
_BITS_PER_CHARACTER = 4.0


class SecretScanner:
    """Search texts for secrets by detect-secrets, tuned for cards, configurations and result files.

    Raises:
        ImportError: detect-secrets is not installed.
    """

    def __init__(self) -> None:
        classes = require("detect_secrets.core.plugins.util").get_mapping_from_secret_type_to_class().values()
        self.detectors = [cls() for cls in classes if cls.__name__ not in _LEFT_OUT]
        high_entropy = require("detect_secrets.plugins.high_entropy_strings").Base64HighEntropyString
        self.high_entropy = high_entropy(limit=_BITS_PER_CHARACTER)
        heuristic = require("detect_secrets.filters.heuristic")
        # `<password>`, `$PASSWORD`, `0123456789` and `****` stand for secrets.
        self.stand_ins: list[Callable[[str], bool]] = [
            heuristic.is_templated_secret,
            heuristic.is_prefixed_with_dollar_sign,
            heuristic.is_sequential_string,
            heuristic.is_not_alphanumeric_string,
        ]

    def find(self, name: str, text: str) -> tuple[int, str] | None:
        """Return the line of the first secret, from 1, and its kind; None if there is none.

        Args:
            name: Name of the file; detectors look at its ending.
            text: Its content.
        """
        numbers: dict[str, int] = {}
        for number, line in enumerate(text.splitlines(), 1):
            # Many lines of result files are equal.
            numbers.setdefault(line.strip(), number)
        for line, number in numbers.items():
            for detector in self.detectors:
                found = detector.analyze_line(filename=name, line=line, line_number=number)
                if any(not any(is_one(secret.secret_value) for is_one in self.stand_ins) for secret in found):
                    return number, detector.secret_type
            if self._has_random_string(_NOT_RANDOM.sub("", line)):
                return number, self.high_entropy.secret_type
        return None

    def _has_random_string(self, line: str) -> bool:
        if not _RANDOM_RUN.search(line):
            return False
        with self.high_entropy.non_quoted_string_regex(is_exact_match=False):
            strings = list(self.high_entropy.analyze_string(line))
        return any(
            _RANDOM_RUN.search(string) and self.high_entropy.calculate_shannon_entropy(string) > _BITS_PER_CHARACTER
            for string in strings
        )


def private_parts(name: str, text: str, tokens: Iterable[str], scanner: SecretScanner | None) -> list[str]:
    """Say what must not be published in a text; the secrets themselves are not shown.

    Args:
        name: Name of the file.
        text: Its content.
        tokens: Secrets that are known.
        scanner: What finds others, if it is installed.
    """
    problems = []
    # Escapes as what they stand for, or "\\n/home" would seem to have an "n" before the path. Outside of JSON a
    # backslash is also the one of Windows.
    if name.endswith((".json", ".jsonl")):
        text = re.sub(r"\\(.)", lambda escape: escape[1] if escape[1] in '\\/"' else " ", text)
    own = (number for number, line in enumerate(text.splitlines(), 1) if any(token in line for token in tokens))
    number = next(own, None)
    found = (number, "your token of the Hub") if number else scanner.find(name, text) if scanner else None
    if found:
        problems.append(
            f"{name}, line {found[0]}: this looks like a secret ({found[1]}); remove it, and revoke it if it is real"
        )
    path = _WINDOWS.search(text) or _ABSOLUTE.search(re.sub(r"\\[nrt]", " ", text))
    if path:
        problems.append(
            f"{name}: {path.group()} is an absolute path, which says where files lie on a machine; remove it"
        )
    return problems
