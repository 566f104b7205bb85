"""nginx, as Debian has it: before PostgREST with the paths of a Supabase project, and before anything else."""

import shutil
from typing import Self

from tests.support.servers import Folder, PostgREST, Process, free_port, port_open

CONFIGURATION = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_max_body_size 50m;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    {locations}
  }}
}}
"""


class Nginx:
    """`locations`: what stands in its server block."""

    def __init__(self, locations: str) -> None:
        self.locations = locations
        self.port = free_port()
        self.folder = Folder("toban-gate-")
        self.process: Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        if binary is None:
            raise FileNotFoundError("no nginx; Debian's package nginx-light has it")
        settings = self.folder.path / "nginx.conf"
        settings.write_text(
            CONFIGURATION.format(folder=self.folder.path, port=self.port, locations=self.locations), encoding="utf-8"
        )
        self.folder.path.chmod(0o755)  # started as root, nginx works as another user
        self.process = Process(
            [binary, "-c", str(settings), "-e", str(self.folder.path / "error.log")], self.folder.path
        )
        self.process.wait_for(lambda: port_open(self.port), "nginx")
        return self

    def stop(self) -> None:
        if self.process:
            self.process.stop()
        self.folder.remove()


class Gateway(Nginx):
    """`url` is what SUPABASE_URL would be."""

    def __init__(self, rest: PostgREST) -> None:
        super().__init__(f"location /rest/v1/ {{ proxy_pass {rest.url}/; }}")
