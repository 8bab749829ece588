"""How long a load takes: disk to page cache to GPU. Loads are strictly serial, so nothing is shared between them."""

from bellmare.twin.config import SECOND_US, TwinConfig, TwinModel


class HostCache:
    """The kernel's page cache, whole weights files only; least recently loaded out first. Order is insertion order of a
    dict.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_used = 0
        self._files: dict[str, int] = {}

    def __contains__(self, blob: str) -> bool:
        return blob in self._files

    def touch(self, blob: str, size_bytes: int) -> None:
        """Read the file: it becomes the newest. A file larger than the whole cache leaves no trace."""
        self.bytes_used -= self._files.pop(blob, 0)
        if size_bytes > self.bytes_max:
            return
        while self.bytes_used + size_bytes > self.bytes_max:
            oldest = next(iter(self._files))
            self.bytes_used -= self._files.pop(oldest)
        self._files[blob] = size_bytes
        self.bytes_used += size_bytes


def load_us(config: TwinConfig, model: TwinModel, *, cached: bool) -> int:
    """From spawn to ready. Reading and copying overlap, so the slower of disk and PCIe decides; cached files skip the
    disk.
    """
    rate = config.gpu.pcie_bytes_per_s
    if not cached:
        rate = min(rate, config.gpu.disk_bytes_per_s)
    return config.spawn_us + model.weights_bytes * SECOND_US // rate
