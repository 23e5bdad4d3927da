package status

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxRequest is the size of the largest OCSP request.
const maxRequest = 16 << 10

// readTime is how long a client may take to send its request.
const readTime = 15 * time.Second

// Values of OCSPResponseStatus other than successful.
const (
	malformedRequest byte = 1
	internalError    byte = 2
	tryLater         byte = 3
	unauthorized     byte = 6
)

// errBusy says that maxWaiting requests wait for the key.
var errBusy = errors.New("status: too many OCSP requests wait for the key")

// errUnauthorized says that a request asks about certificates of other issuers only.
var errUnauthorized = errors.New("status: the request is about another CA's certificates")

// ServeHTTP implements [http.Handler].
func (o *OCSP) ServeHTTP(w http.ResponseWriter, r *http.Request) { OCSPs{o}.ServeHTTP(w, r) }

// OCSPs answer for several CAs under one URL, as while one takes over from another: each request is
// for the first of them whose certificates it asks about. Like an [OCSP] they are a handler.
type OCSPs []*OCSP

// of returns the one that a request is for. If it is for none, each of them would say so.
func (all OCSPs) of(q *request) *OCSP {
	for _, o := range all {
		if slices.ContainsFunc(q.ids, func(id certID) bool { return o.ours(&id) }) {
			return o
		}
	}
	return all[0]
}

// ServeHTTP implements [http.Handler].
func (all OCSPs) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	var q *request
	var err error
	switch r.Method {
	case http.MethodPost:
		// An error means that the connection cannot have a deadline, as in tests.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(readTime))
		var body []byte
		body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			fail(w, http.StatusRequestEntityTooLarge)
			return
		}
		if err == nil {
			q, err = parseRequest(body)
		}
	case http.MethodGet, http.MethodHead:
		q, err = findRequest(r.URL.EscapedPath())
	default:
		header.Set("Allow", "GET, HEAD, POST")
		fail(w, http.StatusMethodNotAllowed)
		return
	}
	if len(all) == 0 {
		refuse(w, unauthorized)
		return
	}
	if err != nil {
		all[0].tell(r.Context(), slog.LevelDebug, err)
		refuse(w, malformedRequest)
		return
	}
	o := all.of(q)
	a, err := o.answer(r.Context(), q)
	switch {
	case errors.Is(err, errUnauthorized):
		o.tell(r.Context(), slog.LevelDebug, err)
		refuse(w, unauthorized)
		return
	case r.Context().Err() != nil && err != nil: // the client has gone
		o.tell(r.Context(), slog.LevelDebug, err)
		refuse(w, tryLater)
		return
	case errors.Is(err, errExpired):
		o.tell(r.Context(), slog.LevelError, err)
		refuse(w, internalError)
		return
	case err != nil: // the depot or the key is away, or busy
		o.tell(r.Context(), o.level(), err)
		refuse(w, tryLater)
		return
	}
	if o.c.Log.Enabled(r.Context(), slog.LevelDebug) {
		o.c.Log.LogAttrs(r.Context(), slog.LevelDebug, "OCSP", slog.String("serial", q.ids[0].serial.Text(16)), slog.Int("certificates", len(q.ids)))
	}
	header.Set("Content-Type", "application/ocsp-response")
	header.Set("Content-Length", strconv.Itoa(len(a.der)))
	if r.Method == http.MethodPost || q.nonce != nil || !a.known {
		header.Set("Cache-Control", "no-store")
	} else if a.headers(header, o.c.Time(), r.Header.Get("If-None-Match")) {
		header.Del("Content-Type")
		header.Del("Content-Length")
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Write(a.der)
}

// headers sets what caches go by (RFC 5019, 6.2), and reports whether the client has this answer.
// Caches ask again when the answer would be signed anew.
func (a *answer) headers(header http.Header, now time.Time, has string) bool {
	fresh := max(a.renew().Sub(now), 0)
	etag := fmt.Sprintf(`"%x"`, sha256.Sum256(a.der))
	header.Set("ETag", etag)
	header.Set("Last-Modified", a.this.UTC().Format(http.TimeFormat))
	header.Set("Expires", a.next.UTC().Format(http.TimeFormat))
	header.Set("Cache-Control", fmt.Sprintf("max-age=%d, public, no-transform, must-revalidate", fresh/time.Second))
	for one := range strings.SplitSeq(has, ",") {
		if one = strings.TrimSpace(one); one == "*" || strings.TrimPrefix(one, "W/") == etag {
			return true
		}
	}
	return false
}

// level is how a failure is logged that is likely to come in thousands: one a second as an error.
func (o *OCSP) level() slog.Level {
	now := time.Now().Unix()
	if last := o.told.Load(); last != now && o.told.CompareAndSwap(last, now) {
		return slog.LevelError
	}
	return slog.LevelDebug
}

func (o *OCSP) tell(ctx context.Context, level slog.Level, err error) {
	o.c.Log.LogAttrs(ctx, level, "OCSP", slog.String("issuer", o.c.Issuer.Subject.String()), slog.String("error", err.Error()))
}

// refuse writes an answer that is not signed (RFC 6960, 2.3).
func refuse(w http.ResponseWriter, status byte) {
	w.Header().Set("Content-Type", "application/ocsp-response")
	w.Header().Set("Cache-Control", "no-store")
	w.Write([]byte{0x30, 3, 0x0a, 1, status})
}

// findRequest reads the request at the end of a path (RFC 6960, A.1): in base64, escaped or not, in
// either alphabet. Where it begins is not known: it may have slashes, and so may what is before it.
// It is a SEQUENCE, so it begins with M.
func findRequest(path string) (*request, error) {
	if len(path) > 2*maxRequest {
		return nil, fmt.Errorf("%w: path of %d bytes", errRequest, len(path))
	}
	for tries := 0; tries < 16; {
		_, rest, found := strings.Cut(path, "/")
		if !found {
			break
		}
		if path = rest; !strings.HasPrefix(path, "M") {
			continue
		}
		tries++
		text, err := url.PathUnescape(path)
		if err != nil {
			continue
		}
		text = strings.NewReplacer("-", "+", "_", "/", " ", "+", "\r", "", "\n", "", "=", "").Replace(text)
		der, err := base64.RawStdEncoding.DecodeString(text)
		if err != nil || len(der) > maxRequest {
			continue
		}
		if q, err := parseRequest(der); err == nil {
			return q, nil
		}
	}
	return nil, fmt.Errorf("%w: none is in the path", errRequest)
}
