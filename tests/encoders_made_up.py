"""Tiny speech models of every family with random weights, saved as a user's folder: none is fetched from anywhere."""
import functools

import torch

WAVES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
             conv_stride=(40, 8), conv_kernel=(60, 11), num_feat_extract_layers=2)  # 50 frames per second
POSITIONS = dict(num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
LAYER_NORM = dict(feat_extract_norm='layer', do_stable_layer_norm=True)
WHISPER = dict(d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
               encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=8, max_source_positions=100, vocab_size=20, pad_token_id=0,
               bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
LAYER = {**WAVES, **POSITIONS, **LAYER_NORM}
FAMILIES = {  # name: class, its configuration, whether its extractor returns a mask
    'wav2vec2': ('Wav2Vec2', {**WAVES, **POSITIONS}, False), 'wav2vec2_layer': ('Wav2Vec2', LAYER, True),
    'hubert': ('Hubert', {**WAVES, **POSITIONS}, False), 'hubert_layer': ('Hubert', LAYER, True),
    'wavlm': ('WavLM', {**WAVES, **POSITIONS}, True), 'wavlm_layer': ('WavLM', LAYER, True),
    'data2vec': ('Data2VecAudio', {**WAVES, 'conv_pos_kernel_size': 5, 'num_conv_pos_embeddings': 3}, True),
    'whisper': ('Whisper', WHISPER, None)}


def save(folder, family: str, seed: int = 0):
    """Saves a model of a family, with its feature extractor; returns the folder, as text."""
    import transformers
    name, sizes, mask = FAMILIES[family]
    torch.manual_seed(seed)
    model = getattr(transformers, f'{name}Model')(getattr(transformers, f'{name}Config')(**sizes))
    extractor = functools.partial(transformers.WhisperFeatureExtractor, feature_size=8, chunk_length=2) if mask is None else \
        functools.partial(transformers.Wav2Vec2FeatureExtractor, return_attention_mask=mask)
    for part in (model, extractor()):
        part.save_pretrained(folder)
    return str(folder)
