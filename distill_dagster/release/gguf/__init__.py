"""Exports of students that write, for llama.cpp and Ollama: conversion, quantization, chat template, parity.

`export.export_gguf` makes them. Answering from them belongs to `release.runtimes.llama_server`.
"""
