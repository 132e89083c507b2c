"""The cross-attention vision transformers as one package."""
