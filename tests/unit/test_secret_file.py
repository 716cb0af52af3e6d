"""A secret that stayed on disk, or got into a message."""

from __future__ import annotations

import stat

import pytest

from trainer.run import secret_file
from trainer.run.exits import BadInput


def test_the_file_is_the_owners_alone_and_gone_once_it_is_read(tmp_path):
    path = tmp_path / "secrets"
    secret_file.write(path, {"HF_TOKEN": "tell-nobody", "TWO": "lines\nand 'quotes'"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    environment = {"DOLPHIN_SECRETS_FILE": str(path), "PATH": "/bin"}
    secret_file.take(environment)
    found = {"PATH": "/bin", "HF_TOKEN": "tell-nobody", "TWO": "lines\nand 'quotes'"}
    assert environment == found | {"DOLPHIN_SECRET_NAMES": "HF_TOKEN,TWO"}
    assert not path.exists()


def test_nothing_is_asked_of_a_run_without_secrets():
    environment = {"PATH": "/bin"}
    secret_file.take(environment)
    assert environment == {"PATH": "/bin"}


def test_a_link_planted_where_the_secrets_go_is_not_followed(tmp_path):
    (tmp_path / "secrets").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        secret_file.write(tmp_path / "secrets", {"HF_TOKEN": "x"})
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("content", [b"tell-nobody", b'["tell-nobody"]', b'{"HF_TOKEN": 1}', None])
def test_a_broken_file_is_refused_without_its_content(tmp_path, content):
    path = tmp_path / "secrets"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        secret_file.take({"DOLPHIN_SECRETS_FILE": str(path)})
    assert "tell-nobody" not in str(caught.value)
    assert not path.exists()
