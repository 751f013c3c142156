"""Model types of transformers that need torchaudio, which only the second environment has."""

import torch
import transformers
from packages_common import noise

from rvqlm.codecs.pretrained import TRANSFORMERS_TYPES
from rvqlm.codecs.registry import load_codec


def test_higgs_audio_works_without_an_adapter_of_its_own(tmp_path):
    assert TRANSFORMERS_TYPES["higgs_audio_v2_tokenizer"].startswith("works where torchaudio is")
    ratios = [8, 5, 4, 2, 3]
    config = transformers.HiggsAudioV2TokenizerConfig(
        acoustic_model_config={
            "model_type": "dac", "encoder_hidden_size": 4, "downsampling_ratios": ratios,
            "upsampling_ratios": ratios, "decoder_hidden_size": 64, "hidden_size": 32,
        },
        semantic_model_config={
            "model_type": "hubert", "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": [8] * 7,
            "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
        },
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.HiggsAudioV2TokenizerModel(config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("codebook.embed"):  # zero when new
            buffer.copy_(torch.randn(buffer.shape) * 0.1)
    model.save_pretrained(tmp_path)
    codec = load_codec(tmp_path)
    assert (codec.info.sampling_rate, codec.info.hop) == (24000, 960)
    audio = noise(1, 1, 960 * 20)
    with torch.no_grad():
        codes = model.encode(audio).audio_codes
        sound = model.decode(codes).audio_values
    ours, _ = codec.encode(audio)
    assert ours.equal(codes.transpose(1, 2)) and codes.unique().numel() > 8
    assert torch.allclose(codec.decode(ours), sound, atol=1e-6)
