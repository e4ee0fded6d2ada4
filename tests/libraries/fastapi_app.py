# SPDX-License-Identifier: Apache-2.0
"""A FastAPI application as its documentation says not to write it: a blocking call in an `async def` handler."""

import os

import requests
from fastapi import FastAPI

app = FastAPI()


@app.get("/{number}")
async def fetch(number: int, crowd: int) -> dict[str, object]:
    answer = requests.get(f"{os.environ['BACKEND']}/{number}?crowd={crowd}", timeout=60)
    return {"text": answer.text, "os_threads": len(os.listdir("/proc/self/task"))}
