// Package scep is a SCEP server (RFC 8894) to mount in your own program.
//
// [New] makes an [http.Handler] of four parts: a [CA] that signs (see the backend packages), a
// [Depot] that remembers (see the depot packages), a [Challenge] that decides who may enrol
// (see package challenge) and a [Policy] that decides what is issued ([Profile] will do for
// most). The handler looks at the operation, never at the path: mount it wherever the devices
// expect it, both with and without a trailing slash, because a redirect stops most clients:
//
//	mux.Handle("/scep", h)
//	mux.Handle("/scep/", h)
//
// To enrol from Go, see package scep/scepclient; to test your own service, scep/sceptest.
package scep

import (
	"context"
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// A Handler answers SCEP requests. It is made by [New], safe for concurrent use, owns nothing
// and starts no goroutine: there is nothing to close. Its keys and rules never change; see [Switch].
type Handler struct {
	c          Config
	cas        []*authority       // first CA, then the next one, then past ones
	opens      []opener           // first the RA
	ownKeys    []crypto.PublicKey // that no device may have
	caps       []byte
	caCert     []byte
	caCertType string
	next       *nextCA       // nil: there is none
	requests   chan struct{} // holds one token for each request under way
	derive     gate          // of keys from passwords
	waiting    waiting
	locks      locks
}

// A report gathers what the log and Events say of one request.
type report struct {
	Event
	status int // HTTP
}

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	started := time.Now()
	rep := &report{Event: Event{Time: h.c.Time(), RemoteAddr: r.RemoteAddr}}
	defer func() {
		if v := recover(); v != nil {
			if v == http.ErrAbortHandler {
				panic(v)
			}
			rep.fail(w, http.StatusInternalServerError, ReasonUnexpected, fmt.Errorf("scep: panic: %v\n%s", v, debug.Stack()))
		}
		rep.Duration = time.Since(started)
		h.tell(context.WithoutCancel(r.Context()), rep)
	}()
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")

	if r.ContentLength != 0 {
		// A server that has no time-outs of its own is safe all the same. An error means that
		// the connection cannot have one, as in tests.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(h.c.Limits.ReadTime))
	}
	operation, message := parseQuery(r.URL.RawQuery)
	if operation == "" && r.Method == http.MethodPost {
		operation = "PKIOperation" // RFC 8894, 4.3: servers need not look
	}
	rep.Operation = operation
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case !read && r.Method != http.MethodPost:
		header.Set("Allow", "GET, HEAD, POST")
		rep.fail(w, http.StatusMethodNotAllowed, ReasonHTTP, fmt.Errorf("scep: method %.20q", r.Method))
	case strings.EqualFold(operation, "PKIOperation") && r.Method == http.MethodPost:
		rep.Operation = "PKIOperation"
		if body, ok := h.readBody(w, r, rep); ok {
			h.operate(w, r, rep, body)
		}
	case strings.EqualFold(operation, "PKIOperation") && r.Method == http.MethodGet:
		rep.Operation = "PKIOperation"
		body, err := decodeMessage(message, h.c.Limits.Bytes)
		if err != nil {
			rep.fail(w, http.StatusBadRequest, ReasonHTTP, err)
			return
		}
		h.operate(w, r, rep, body)
	case read && strings.EqualFold(operation, "GetCACaps"):
		rep.Operation = "GetCACaps"
		rep.send(w, typeCaps, h.caps)
	case read && strings.EqualFold(operation, "GetCACert"):
		rep.Operation = "GetCACert"
		rep.send(w, h.caCertType, h.caCert)
	case read && strings.EqualFold(operation, "GetNextCACert"):
		rep.Operation = "GetNextCACert"
		h.sendNextCA(w, r, rep)
	default:
		rep.Operation = strconv.QuoteToASCII(fmt.Sprintf("%.40s", operation))
		rep.fail(w, http.StatusBadRequest, ReasonHTTP, errors.New("scep: unknown operation for this method"))
	}
}

// operate answers a PKIOperation.
func (h *Handler) operate(w http.ResponseWriter, r *http.Request, rep *report, body []byte) {
	select {
	case h.requests <- struct{}{}:
		defer func() { <-h.requests }()
	default:
		rep.fail(w, http.StatusServiceUnavailable, ReasonBusy, errors.New("scep: Limits.Requests are under way"))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.c.Limits.Time)
	defer cancel()

	in, err := h.open(ctx, body)
	if errors.Is(err, errNoReply) {
		rep.fail(w, http.StatusBadRequest, ReasonMalformed, err)
		return
	}
	rep.MessageType = in.kind.String()
	rep.TransactionID = string(in.msg.TransactionID)
	var out *outcome
	if err == nil {
		switch in.kind {
		case pkcsReq, renewalReq:
			out, err = h.enroll(ctx, in, r.RemoteAddr)
		case certPoll:
			out, err = h.poll(ctx, in)
		case getCert:
			out, err = h.getCert(ctx, in)
		case getCRL:
			out, err = h.getCRL(ctx, in)
		default:
			err = fmt.Errorf("scep: message type %q was opened but is not answered", in.kind)
		}
	}
	if out != nil && out.rec != nil {
		rep.ID, rep.Certificate = out.rec.ID, out.cert
		rep.Request = out.req.public()
	}
	var why *Error
	switch {
	case errors.As(err, &why):
		rep.Reason, rep.FailInfo, rep.Err = why.Reason, why.FailInfo, err
		if rep.Reason == "" {
			rep.Reason = ReasonRefused
		}
		rep.Certificate = nil
	case err != nil:
		h.sorry(w, r, rep, err)
		return
	default:
		rep.Reason, rep.Err = out.reason(), out.err
	}
	// A client that went away may have its answer signed all the same: it asks again.
	ctx, cancel = context.WithDeadline(context.WithoutCancel(ctx), deadlineOf(ctx))
	defer cancel()
	reply, err := h.seal(ctx, in, out, why)
	if err != nil {
		rep.Certificate = nil
		h.sorry(w, r, rep, fmt.Errorf("scep: sealing the reply: %w", err))
		return
	}
	rep.send(w, typeMessage, reply)
}

func deadlineOf(ctx context.Context) time.Time {
	deadline, _ := ctx.Deadline()
	return deadline
}

// sorry answers when the fault is ours: nothing was refused and nothing is lost.
func (h *Handler) sorry(w http.ResponseWriter, r *http.Request, rep *report, err error) {
	reason := ReasonUnavailable
	switch {
	case r.Context().Err() != nil:
		reason = ReasonDisconnected
	case errors.Is(err, errQueueFull):
		reason = ReasonBusy
	}
	rep.fail(w, http.StatusServiceUnavailable, reason, err)
}

// readBody reads a message that came by POST: binary, or in base64 as some clients have it.
func (h *Handler) readBody(w http.ResponseWriter, r *http.Request, rep *report) ([]byte, bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.c.Limits.Bytes))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		rep.fail(w, http.StatusRequestEntityTooLarge, ReasonTooLarge, err)
		return nil, false
	case err != nil:
		rep.fail(w, http.StatusBadRequest, ReasonDisconnected, err)
		return nil, false
	case len(body) == 0:
		rep.fail(w, http.StatusBadRequest, ReasonHTTP, errors.New("scep: empty body"))
		return nil, false
	}
	if body[0] != 0x30 { // no SEQUENCE
		if decoded, err := decodeBase64(string(body)); err == nil {
			body = decoded
		}
	}
	return body, true
}

// parseQuery finds operation and message in a raw query. net/url will not do: it turns a raw
// "+" of base64 into a blank, and gives up on ";".
func parseQuery(raw string) (operation, message string) {
	for part := range strings.FieldsFuncSeq(raw, func(r rune) bool { return r == '&' || r == ';' }) {
		key, value, _ := strings.Cut(part, "=")
		switch strings.ToLower(key) {
		case "operation":
			if operation == "" {
				operation = unescape(value)
			}
		case "message":
			if message == "" {
				message = value
			}
		}
	}
	return operation, message
}

// unescape decodes %XX, leaves "+" alone, and leaves what is no escape as it is.
func unescape(s string) string {
	if out, err := url.PathUnescape(s); err == nil {
		return out
	}
	return s
}

// decodeMessage decodes the message of a GET request, with or without escapes, once or twice
// escaped.
func decodeMessage(s string, limit int64) ([]byte, error) {
	if s = unescape(s); strings.Contains(s, "%") {
		s = unescape(s)
	}
	if s == "" {
		return nil, errors.New("scep: no message in the query")
	}
	body, err := decodeBase64(s)
	if err != nil {
		return nil, err
	}
	if int64(len(body)) > limit {
		return nil, fmt.Errorf("scep: message of %d bytes", len(body))
	}
	return body, nil
}

var base64Mender = strings.NewReplacer("\r", "", "\n", "", "\t", "", "=", "", " ", "+", "-", "+", "_", "/")

// decodeBase64 decodes both alphabets, wrapped or not, padded or not, and with blanks where
// somebody unescaped a "+".
func decodeBase64(s string) ([]byte, error) {
	body, err := base64.RawStdEncoding.DecodeString(base64Mender.Replace(strings.TrimSpace(s)))
	if err != nil {
		return nil, fmt.Errorf("scep: message is not base64: %w", err)
	}
	if len(body) == 0 {
		return nil, errors.New("scep: message is empty")
	}
	return body, nil
}

// send writes an answer of SCEP's.
func (rep *report) send(w http.ResponseWriter, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	rep.status = http.StatusOK
	w.Write(body)
}

// fail writes a fixed text, which holds nothing of the request and nothing of err.
func (rep *report) fail(w http.ResponseWriter, status int, reason Reason, err error) {
	rep.status, rep.Reason, rep.Err = status, reason, err
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "10")
	}
	http.Error(w, strings.ToLower(http.StatusText(status)), status)
}

// tell writes the log record and calls the event's func.
func (h *Handler) tell(ctx context.Context, rep *report) {
	e := &rep.Event
	level, call := slog.LevelInfo, h.c.Events.Refused
	switch {
	case rep.status >= 500:
		level, call = slog.LevelError, h.c.Events.Failed
	case rep.status != http.StatusOK, e.Err != nil && e.Reason != ReasonSigning:
	case e.Reason == ReasonIssued:
		call = nil // told when it was stored
	case e.Reason == ReasonRepeated:
		call = h.c.Events.Repeated
	case e.Reason == ReasonPending:
		call = h.c.Events.Waiting
	case e.Reason == ReasonSigning:
		level, call = slog.LevelError, h.c.Events.Waiting
	default: // GetCACaps, GetCACert
		level, call = slog.LevelDebug, nil
	}
	if h.c.Log.Enabled(ctx, level) {
		h.c.Log.LogAttrs(ctx, level, "scep", rep.attrs()...)
	}
	if call != nil {
		call(ctx, *e)
	}
}

func (rep *report) attrs() []slog.Attr {
	e := &rep.Event
	attrs := []slog.Attr{
		slog.String("operation", e.Operation),
		slog.Int("status", rep.status),
		slog.String("remote", e.RemoteAddr),
		slog.Duration("duration", e.Duration),
	}
	add := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	add("reason", string(e.Reason))
	add("type", e.MessageType)
	add("transaction", e.TransactionID)
	add("record", string(e.ID))
	if e.Request != nil && e.Request.CSR != nil {
		add("subject", e.Request.CSR.Subject.String())
	}
	if e.Certificate != nil {
		add("serial", e.Certificate.SerialNumber.Text(16))
	}
	if e.Err != nil {
		add("error", e.Err.Error())
	}
	return attrs
}
