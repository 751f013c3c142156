"""`AudioLM`: the family `valle` without conditions, by the names that AudioLM on VALL-E gave it."""

from __future__ import annotations

import torch
from torch import Tensor

from rvqlm.codec_info import CodecInfo
from rvqlm.models.valle import Valle, ValleConfig


class AudioLM(Valle):
    """Continues codes of audio; those of EnCodec at 32 kHz unless told otherwise.

    >>> model = AudioLM(d_model=64, nhead=2, num_layers=1, num_quantizers=4).eval()
    >>> prompt_tokens = torch.randint(2048, (1, 150, 4))  # 3 s at 50 frames a second
    >>> generated = model.inference(
    ...     x=prompt_tokens, x_lens=torch.tensor([150]), max_new_tokens=500,
    ...     temperature=1.0, top_k=50,
    ... )
    >>> generated.shape
    torch.Size([1, 650, 4])
    >>> bool((generated[:, :150] == prompt_tokens).all())
    True

    Weights of ``rvqlm train --model-name audio-lm`` load where the sizes are the same::

        model.load_state_dict(torch.load("exp/audio-lm/best.pt")["model"])

    `rvqlm.from_pretrained` reads the sizes as well, and the averaged weights of ``--ema-decay``.

    Parameters
    ----------
    d_model, nhead, num_layers: shape of both networks.
    norm_first: norms before the branches, not after each sum.
    add_prenet: two linear layers between embeddings and networks.
    num_quantizers: levels K of the codes.
    nar_scale_factor: width of the NAR, in widths of the AR.
    prepend_bos: a learned step between prompt and continuation.
    codebook_size: codes of a level.
    options: other fields of `ValleConfig`.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        num_layers: int,
        norm_first: bool = True,
        add_prenet: bool = False,
        num_quantizers: int = 4,
        nar_scale_factor: float = 1.0,
        prepend_bos: bool = False,
        codebook_size: int = 2048,
        **options,
    ):
        config = ValleConfig(
            d_model, nhead, num_layers, norm_first=norm_first, add_prenet=add_prenet,
            nar_scale_factor=nar_scale_factor, prepend_bos=prepend_bos, **options,
        )  # fmt: skip
        codec = "facebook/encodec_32khz"
        super().__init__(config, CodecInfo(codec, "", 32000, 640, num_quantizers, codebook_size))

    def inference(
        self,
        x: Tensor,
        x_lens: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int = 50,
        seed: int | None = None,
    ) -> Tensor:
        """Prompt and continuation, (B, P + max_new_tokens, K) int64. Each item goes on where its
        prompt ends; behind the continuation of a shorter one are `rvqlm.batch.PAD`.

        It has so many frames in any case; `generate` lets the model end by itself.

        :param x: (B, P, K) codes.
        :param x_lens: (B,) valid frames of each prompt.
        :param top_k: draw among so many; 0 or less: among all.
        :param seed: of the draws; None takes one from torch's random state.
        :raises UserError: codes out of range, a shape of another codec, bad options.
        """
        if seed is None:
            seed = int(torch.randint(1 << 31, ()))
        made = self.generate(
            x, x_lens, max_new_tokens, temperature, max(top_k, 0),
            min_new_frames=max_new_tokens, seed=seed,
        )  # fmt: skip
        return made.codes
