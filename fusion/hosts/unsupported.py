"""Models that AutoModelForSeq2SeqLM builds and that can be no host: model type -> reason."""

from __future__ import annotations

_SPEECH = "its encoder reads speech, not text"
UNSUPPORTED: dict[str, str] = {
    name: _SPEECH
    for name in (
        *("audioflamingo3", "glmasr", "granite_speech", "granite_speech_plus", "musicflamingo"),
        *("moss_transcribe_diarize", "nemo_speechlm", "omniasr", "qwen2_audio", "qwen3_asr"),
        *("vibevoice_asr", "voxtral", "voxtral_realtime"),
    )
}
