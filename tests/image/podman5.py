"""Podman 5, whose `kube play` runs real manifests: the installed one, or that of Debian 13 in a root of its own.

Podman 4 does not decode the Secrets that it mounts.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.image import debian
from tests.image.podman import podman

PACKAGES = "ca-certificates,podman,runc,netavark,aardvark-dns,catatonit,iptables,nftables"
STORAGE = """\
[storage]
driver = "overlay"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
[storage.options]
additionalimagestores = ["/host-images"]
"""

# pivot_root, not chroot: `podman exec` enters containers by their mount namespace's root.
ENTER = """\
set -e
cd "$1"
mount --bind . .
cd "$1"
for folder in proc sys dev; do mount --rbind /$folder $folder; done
mkdir -p host-images shared old
mount --bind "$2" host-images
mount --bind "$3" shared
pivot_root . old
umount -l /old
echo entered
exec sleep infinity
"""

Run = Callable[..., str]


@contextmanager
def podman5(folder: Path) -> Iterator[tuple[Run, str]]:
    """A function like `podman`, and the path under which that podman sees `folder`."""
    if int(podman("version", "--format={{.Client.Version}}").partition(".")[0]) >= 5:
        yield podman, str(folder)
    else:
        with _debian_13(folder) as run:
            yield run, "/shared"


@contextmanager
def _debian_13(folder: Path) -> Iterator[Run]:
    """Podman in a mount namespace whose root is Debian 13; it reads this machine's images where they are."""
    root = folder / "debian-13"
    root.mkdir()
    subprocess.run(["tar", "-xf", debian.root("podman-5", "trixie", PACKAGES), "-C", root], check=True)
    (root / "etc/containers/storage.conf").write_text(STORAGE)
    (root / "etc/containers/containers.conf").write_text(Path(os.environ["CONTAINERS_CONF"]).read_text())
    images = podman("info", "--format={{.Store.GraphRoot}}")
    command = ["unshare", "--mount", "sh", "-c", ENTER, "sh", str(root), images, str(folder)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"entered\n"

    def run(*arguments: str) -> str:
        inside = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "podman", "--log-level=error", *arguments]
        command = ["nsenter", f"--target={holder.pid}", "--mount", *inside]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    try:
        yield run
    finally:
        holder.kill()
        holder.wait()
