"""Programs that answer from an export: the adapter in torch, ONNX files in onnxruntime, GGUF files in llama.cpp.

All of them have the interface of `types.Runtime`. Parity checks, calibration of the router and serving use it.
`open_export` finds the runtime of an export. How an export is made belongs to the packages beside this one.
"""
