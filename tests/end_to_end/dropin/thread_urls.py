"""The ThreadPoolExecutor example of the documentation of concurrent.futures, with a server of its own."""

import http.server
import threading
import urllib.request
from concurrent import futures


class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode() * 100)

    def log_message(self, *args):
        pass


SERVER = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
URLS = [
    f"http://127.0.0.1:{SERVER.server_port}/{page}"
    for page in ("news", "sports", "europe", "weather", "missing")
]


# Retrieve a single page and report the URL and contents
def load_url(url, timeout):
    with urllib.request.urlopen(url, timeout=timeout) as conn:
        return conn.read()


lines = []
threading.Thread(target=SERVER.serve_forever, daemon=True).start()

# We can use a with statement to ensure threads are cleaned up promptly
with futures.ThreadPoolExecutor(max_workers=5) as executor:
    # Start the load operations and mark each future with its URL
    future_to_url = {executor.submit(load_url, url, 60): url for url in URLS}
    for future in futures.as_completed(future_to_url):
        page = future_to_url[future].rpartition("/")[2]
        try:
            data = future.result()
        except Exception as exc:
            lines.append(f"{page!r} generated an exception: {exc}")
        else:
            lines.append(f"{page!r} page is {len(data)} bytes")

SERVER.shutdown()
print("\n".join(sorted(lines)))
