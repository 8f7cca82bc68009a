"""What is known about a file and its file system."""

from __future__ import annotations

from pathlib import Path

import pytest

from synap_realtime.server.stores.sqlite.file_guard import find_network_file_system

MOUNTS = """\
/dev/sda1 / ext4 rw,relatime 0 0
server:/export /mnt/my\\040share nfs4 rw,vers=4.2 0 0
/dev/sdb1 /mnt/my\\040share/local ext4 rw 0 0
//host/share /srv cifs rw 0 0
"""


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("/var/lib/rooms.db", None),
        ("/mnt/my share/rooms.db", "nfs4"),
        ("/mnt/my share/local/rooms.db", None),
        ("/srv/rooms.db", "cifs"),
        ("/srvother/rooms.db", None),
    ],
)
def test_finds_a_network_file_system(where: str, kind: str | None) -> None:
    assert find_network_file_system(Path(where), MOUNTS) == kind
