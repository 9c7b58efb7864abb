"""What a checkpoint will hold, as it was at one moment: copied to the host, to be written while training goes on."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Files = dict[str, Any]
"""Content by file name: tensors by name of a `.safetensors`, tensors and plain values in nested dicts and lists of a
`.state`; else bytes."""

_BLOCK_BYTES = 64 << 20
_ALIGN_BYTES = 64
_DROPPED = object()


class HostMemory:
    """Host memory for one snapshot at a time, kept for the next one: pages that are new cost as much as the copy.

    Args:
        device: where the tensors come from. Memory for CUDA is pinned, which a device copies into several times
            as fast.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_pinned = device.type == "cuda"
        self._blocks: list[mmap.mmap] = []
        self.begin()

    def begin(self) -> None:
        """Start a snapshot in the memory of the last one, which must not be needed any more."""
        self.problem = ""
        """Why a tensor could not be kept. Told here and not raised, since other ranks may be sending the next one."""
        self.num_bytes = 0
        """Bytes of the tensors kept since."""
        self._block = self._offset = 0

    def state(self, value: Any) -> Any:
        """A copy of nested dicts, lists and tuples; entries of dicts with what is neither tensor nor plain value are
        left out.
        """
        kept = self._state(value)
        if kept is _DROPPED:
            raise TypeError(f"a {type(value).__name__} is no state: needed tensors and plain values")
        return kept

    def weights(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies by name; see `weight`."""
        return {name: self.weight(tensor) for name, tensor in tensors.items()}

    def weight(self, tensor: Tensor) -> Tensor:
        """A copy of `tensor`, row by row; floating point values as float32."""
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        return self._copy(tensor, torch.empty_like(tensor, dtype=dtype, device="meta").contiguous())

    def wait(self) -> None:
        """Return when the device has sent all that was kept."""
        if self._is_pinned:
            torch.cuda.current_stream().synchronize()

    def _state(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._copy(value, torch.empty_like(value, device="meta"))
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, dict):
            entries = {key: self._state(item) for key, item in value.items()}
            return {key: item for key, item in entries.items() if item is not _DROPPED}
        if type(value) in (list, tuple):
            items = [self._state(item) for item in value]
            return _DROPPED if any(item is _DROPPED for item in items) else type(value)(items)
        return _DROPPED

    @torch.no_grad()
    def _copy(self, tensor: Tensor, form: Tensor) -> Tensor:
        """`tensor` in the type and layout of `form`, in a storage of its own."""
        num_bytes = form.numel() * form.element_size()
        self.num_bytes += num_bytes
        if not num_bytes or self.problem:
            return torch.empty(form.shape, dtype=form.dtype)
        try:
            block, offset = self._take(num_bytes)
        except OSError as error:
            self.problem = f"no memory for a snapshot of the training state ({error})"
            return torch.empty(form.shape, dtype=form.dtype)
        flat = torch.frombuffer(block, dtype=form.dtype, count=form.numel(), offset=offset)
        kept = flat.as_strided(form.shape, form.stride())
        return kept.copy_(tensor.detach(), non_blocking=self._is_pinned)

    def _take(self, num_bytes: int) -> tuple[mmap.mmap, int]:
        """A block and the offset in it of `num_bytes` that nobody else uses."""
        while self._block < len(self._blocks):
            if self._offset + num_bytes <= len(self._blocks[self._block]):
                offset = self._offset
                self._offset += -(-num_bytes // _ALIGN_BYTES) * _ALIGN_BYTES
                return self._blocks[self._block], offset
            self._block, self._offset = self._block + 1, 0
        self._blocks.append(self._new_block(max(num_bytes, _BLOCK_BYTES)))
        return self._take(num_bytes)

    def _new_block(self, num_bytes: int) -> mmap.mmap:
        block = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_DONTFORK"):
            # Or loader workers that start later would share the pages, and each had to be copied at the next snapshot.
            block.madvise(mmap.MADV_DONTFORK)
        if self._is_pinned:
            address = torch.frombuffer(block, dtype=torch.uint8).data_ptr()
            error = int(torch.cuda.cudart().cudaHostRegister(address, num_bytes, 0))
            if error:
                raise OSError(
                    f"CUDA error {error}: {num_bytes / 1e6:.0f} MB cannot be pinned; raise the limit of locked memory "
                    "(ulimit -l)"
                )
        return block
