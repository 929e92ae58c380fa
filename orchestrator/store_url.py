"""The URL of a store: where it is read from, and how a command names it without its password."""

import os
import re
import shlex

DEFAULT_STORE = "sqlite:///archfront.db"
STORE_VARIABLE = "ARCHFRONT_STORE"

_PASSWORD = re.compile(r"://[^/@]*:[^@]*@|[?&]\w*password=")


def holds_password(url: str) -> bool:
    """Whether a store's URL contains a password."""
    return _PASSWORD.search(url) is not None


def store_option(url: str) -> str:
    """The option that names the store in a command to type next; empty for the default store.

    A store that came from the environment, or whose URL holds a password, is named by the
    environment variable, so that no password is printed.
    """
    in_environment = os.environ.get(STORE_VARIABLE)
    if url == in_environment or holds_password(url):
        return f' --store "${STORE_VARIABLE}"'
    if url == DEFAULT_STORE and in_environment is None:
        return ""
    return f" --store {shlex.quote(url)}"
