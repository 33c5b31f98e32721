"""Serve a model over HTTP: images in, JSON or PNG out, with batches and a bounded queue (else 503).

pip install fastapi uvicorn
MODEL=isanet_resnet50os8_voc uvicorn --app-dir examples serve:app
curl --data-binary @photo.jpg "localhost:8000/segment?output=json"
"""

import asyncio
import contextlib
import io
import os
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request, Response

from isanet_zoo import InputError, Predictor

QUEUE, BATCH, MOST_BYTES, SECONDS = 32, 8, 20_000_000, 30  # the last two for an upload
predictor = Predictor(os.getenv("MODEL", "isanet_efficientnet_lite0os8_camvid"), batch_size=BATCH)
slots, queue = asyncio.Semaphore(QUEUE), asyncio.Queue[Any]()  # requests hold a slot until answered


def segment(images: list[bytes]) -> list[Any]:
    """Segment a batch; if an image in it fails, segment each separately and return its error."""
    try:
        return list(predictor.stream(images))
    except Exception as error:
        return [error] if len(images) == 1 else [segment([image])[0] for image in images]


@contextlib.asynccontextmanager
async def work(_: FastAPI) -> AsyncIterator[None]:
    """Segment images as long as the server runs, in batches."""

    async def loop() -> None:
        while batch := [await queue.get()]:
            batch += [queue.get_nowait() for _ in range(min(queue.qsize(), BATCH - 1))]
            results = await asyncio.to_thread(segment, [image for image, _ in batch])
            for (_, future), result in zip(batch, results, strict=True):
                if not future.cancelled():  # as it is when its client has disconnected
                    future.set_result(result)

    task = asyncio.create_task(loop())
    yield
    task.cancel()


async def answer(request: Request, output: Literal["json", "png"] = "json") -> Any:
    """Segment an image; return its classes as JSON, or its labels as a PNG."""
    if int(request.headers.get("content-length", MOST_BYTES + 1)) > MOST_BYTES:
        raise HTTPException(413, f"send an image with its length, of up to {MOST_BYTES} bytes")
    if slots.locked():
        raise HTTPException(503, "the queue is full", {"Retry-After": "1"})
    async with slots:
        image = await asyncio.wait_for(request.body(), SECONDS)
        queue.put_nowait((image, future := asyncio.get_running_loop().create_future()))
        result = await future
    if isinstance(result, Exception):
        raise HTTPException(422, str(result)) if isinstance(result, InputError) else result
    if output == "json":
        return result.to_dict()
    await asyncio.to_thread(result.to_image().save, file := io.BytesIO(), "PNG")
    return Response(file.getvalue(), media_type="image/png")


app = FastAPI(lifespan=work)
app.post("/segment")(answer)
app.get("/health")(lambda: {"classes": predictor.engine.label_set.title, "waiting": queue.qsize()})
