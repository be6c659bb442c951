"""Other programs' formats, both ways: GGUF, Hugging Face folders, llama2.c; one name table per architecture."""
