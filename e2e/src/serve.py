# Serves /srv/served/bundle.tar on the loopback as a good HTTP server would: a mark for its version, ranges. The first answer stops
# half-way until whoever asked is gone. What was asked for is noted in /srv/served/asked.
import http.server

DATA = open("/srv/served/bundle.tar", "rb").read()
TAG = '"%d"' % len(DATA)
asked = []


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        wanted = self.headers.get("Range", "")
        asked.append(wanted)
        with open("/srv/served/asked", "a") as note:
            note.write(wanted + "\n")
        start = 0
        if wanted and self.headers.get("If-Range") == TAG:
            start = int(wanted[len("bytes="):-1])
            self.send_response(206)
            self.send_header("Content-Range", "bytes %d-%d/%d" % (start, len(DATA) - 1, len(DATA)))
        else:
            self.send_response(200)
        self.send_header("ETag", TAG)
        self.send_header("Content-Length", str(len(DATA) - start))
        self.end_headers()
        if len(asked) == 1:
            self.wfile.write(DATA[: len(DATA) // 2])
            self.wfile.flush()
            self.rfile.read(1)
            self.close_connection = True
            return
        self.wfile.write(DATA[start:])

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", 8099), Handler).serve_forever()
