package status

import (
	"bytes"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"
)

// ServeHTTP implements [http.Handler].
func (crl *CRL) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		fail(w, http.StatusMethodNotAllowed)
		return
	}
	at, found := crl.names[path.Base(r.URL.EscapedPath())]
	if !found {
		if crl.full.urls != nil && (crl.c.Shards > 1 || crl.delta != nil) {
			fail(w, http.StatusNotFound)
			return
		}
		at = place{crl.full, 0}
	}
	crl.notice(r.Context())
	g, err := crl.current(r.Context(), at.e, at.shard)
	if err != nil { // logged by whoever tried to make it
		header.Set("Retry-After", strconv.Itoa(int(retryAfter/time.Second)))
		fail(w, http.StatusServiceUnavailable)
		return
	}
	now, l := crl.c.Time(), g.lists[at.shard]
	fresh := min(max(l.listed.Add(at.e.refresh).Sub(now), 0), l.next.Sub(now))
	header.Set("Content-Type", "application/pkix-crl")
	header.Set("ETag", fmt.Sprintf(`"%x-%d"`, l.number, at.shard))
	header.Set("Expires", l.next.UTC().Format(http.TimeFormat))
	header.Set("Cache-Control", fmt.Sprintf("public, no-transform, max-age=%d", fresh/time.Second))
	http.ServeContent(w, r, "", l.this, bytes.NewReader(l.der))
}

// fail writes a fixed text that is not to be cached.
func fail(w http.ResponseWriter, status int) {
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, strings.ToLower(http.StatusText(status)), status)
}
