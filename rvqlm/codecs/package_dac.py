"""DAC through Descript's own package: ``package:dac:weights.pth``, extra ``dac``.

For those who want the reference implementation at work. The plain path ``weights.pth`` loads the
same file without the package and gives the same codes and audio, bit for bit (``tools/test.sh
--codecs`` proves it), hence the same fingerprint: tokens of both mix. Only the model's `encode` and
`decode` are called. The package's `compress`, which normalises loudness and cuts the audio in ways
that change codes, is not.
"""

from __future__ import annotations

from torch import Tensor, nn

from rvqlm.codecs.base import Codec
from rvqlm.codecs.dac import DacCodec
from rvqlm.codecs.native_checkpoint import find_file, read_native, remembered, to_transformers
from rvqlm.codecs.native_dac import package_kwargs
from rvqlm.codecs.package_import import import_package
from rvqlm.errors import UserError

PREFIX = "package:dac:"


class PackageDacCodec(DacCodec):
    """`dac.DAC` behind the interface of its transformers twin, which gives shapes, fingerprint and
    context."""

    def __init__(self, twin: nn.Module, model: nn.Module, name: str, num_codebooks: int | None):
        super().__init__(twin, name, num_codebooks)
        self.model = model.float().requires_grad_(False)
        self.eval()

    def _encode(self, audio: Tensor) -> Tensor:
        return self.model.encode(audio, n_quantizers=self.info.num_codebooks)[1]

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(self.model.quantizer.from_codes(codes)[0])


def load_package(name: str, num_codebooks: int | None = None) -> Codec:
    """The codec ``package:dac:FILE``; `UserError` where the package or the file is missing."""
    file = name.removeprefix(PREFIX)
    dac = import_package("dac", "descript-audio-codec", "dac", name, f"give --codec {file}")
    path = find_file(file)
    checkpoint = read_native(path)
    if checkpoint.kind != "dac":
        raise UserError(f"codec {name}: {path} holds the weights of an EnCodec")
    twin = to_transformers(checkpoint)
    model = dac.DAC(**package_kwargs(checkpoint))
    model.load_state_dict(checkpoint.state)
    return PackageDacCodec(twin, model, PREFIX + remembered(file, path), num_codebooks)
