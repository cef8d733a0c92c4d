"""Encoder students as ONNX files: the graph in float32 and in 8 bits, its tokenizer and labels, and their parity.

`export.export_onnx` writes them. Answering from them belongs to `runtimes.onnx`.
"""
