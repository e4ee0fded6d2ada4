# SPDX-License-Identifier: Apache-2.0
"""A Django application whose `async def` views use the ORM directly; `task_connections` is that of docs/django.md."""

import asyncio
import os

from django.conf import settings

settings.configure(
    SECRET_KEY="for tests",
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "USER": "postgres",
            "HOST": "127.0.0.1",
            "PORT": os.environ["POSTGRES_PORT"],
            "OPTIONS": {"options": "-c client_connection_check_interval=50"},  # ms
        }
    },
)

import task_connections  # noqa: E402, F401
from django.core.asgi import get_asgi_application  # noqa: E402
from django.db import connection, models, transaction  # noqa: E402
from django.http import HttpRequest, HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402

application = get_asgi_application()


class Note(models.Model):
    text = models.CharField(max_length=20)

    class Meta:
        """The tests make the table."""

        app_label = "notes"
        db_table = "notes"


class Undo(Exception):
    """Ends a transaction that is to leave nothing."""


def write_at_gate(number: int) -> bool:
    """In a transaction write a note and wait at the server's gate; odd numbers then undo it. Is it there?."""
    gate = models.Func(1, function="pg_advisory_xact_lock_shared", output_field=models.TextField())
    try:
        with transaction.atomic():
            note = Note.objects.create(text=str(number))
            Note.objects.annotate(gate=gate).get(pk=note.pk)
            if number % 2:
                raise Undo
    except Undo:
        pass
    return Note.objects.filter(text=str(number)).exists()


async def write(request: HttpRequest, number: int) -> HttpResponse:
    return HttpResponse(str(write_at_gate(number)))


def write_plainly(request: HttpRequest, number: int) -> HttpResponse:
    return HttpResponse(str(write_at_gate(number)))


async def overlap(request: HttpRequest) -> HttpResponse:
    """Two tasks whose transactions overlap, in a view that has used a connection itself: what one undid is gone."""
    Note.objects.exists()
    are_written = asyncio.Barrier(2)

    async def write(text: str) -> int:
        try:
            with transaction.atomic():
                Note.objects.create(text=text)
                await are_written.wait()
                if text == "undone":
                    raise Undo
        except Undo:
            pass
        return connection.connection.info.backend_pid

    backends = await asyncio.gather(write("kept"), write("undone"))
    left = sorted(Note.objects.filter(text__in=["kept", "undone"]).values_list("text", flat=True))
    return HttpResponse(f"{len(set(backends))} connections, {left}")


urlpatterns = [
    path("write/<int:number>", write),
    path("write_plainly/<int:number>", write_plainly),
    path("overlap", overlap),
]
