package scepclient

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// An UnavailableError says that the server has no time, or that something behind it is out of
// order. The request was not refused.
type UnavailableError struct {
	Status     int           // HTTP status: 429 or 503
	RetryAfter time.Duration // when to try again; 0 if the server did not say
}

// Error says when to try again.
func (e *UnavailableError) Error() string {
	s := fmt.Sprintf("scepclient: the server is not available now (HTTP %d); try again ", e.Status)
	if e.RetryAfter > 0 {
		return s + "in " + e.RetryAfter.String()
	}
	return s + "later"
}

// A statusError is an answer with an HTTP status that is none of success.
type statusError struct {
	operation string
	status    int
	location  string // of a redirect
	text      string // quoted
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("scepclient: the server answered %s with HTTP %d", e.operation, e.status)
	if name := http.StatusText(e.status); name != "" {
		s += " " + name
	}
	switch {
	case e.location != "":
		s += fmt.Sprintf(": it redirects to %.300q; if that is right, set Client.URL to it", e.location)
	case e.status == http.StatusNotFound:
		s += ": is Client.URL right, with its path?"
	case e.text != "":
		s += ": " + e.text
	}
	return s
}

// An answer is an HTTP answer with status 200.
type answer struct {
	body        []byte
	contentType string
}

// unexpected is for an answer that is not what was asked for.
func (a *answer) unexpected(operation, want string, cause error) error {
	what := "no Content-Type"
	if a.contentType != "" {
		what = fmt.Sprintf("Content-Type %.100q", a.contentType)
	}
	return fmt.Errorf("scepclient: the answer to %s (%s, %d bytes) is not %s; is Client.URL that of a SCEP service? %w", operation, what, len(a.body), want, cause)
}

// get sends an operation with GET. message is left out if it is empty.
func (c *Client) get(ctx context.Context, operation, message string) (*answer, error) {
	u, err := c.base()
	if err != nil {
		return nil, err
	}
	query := "operation=" + operation
	if message != "" {
		// A blank is %20 in any part of a URL.
		query += "&message=" + strings.ReplaceAll(url.QueryEscape(message), "+", "%20")
	}
	u.RawQuery = joinQuery(u.RawQuery, query)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("scepclient: %w", err)
	}
	return c.do(req, operation)
}

// send sends a pkiMessage, by POST if the server takes that.
func (c *Client) send(ctx context.Context, post bool, message []byte) (*answer, error) {
	const operation = "PKIOperation"
	if !post {
		return c.get(ctx, operation, base64.StdEncoding.EncodeToString(message))
	}
	u, err := c.base()
	if err != nil {
		return nil, err
	}
	u.RawQuery = joinQuery(u.RawQuery, "operation="+operation)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(message))
	if err != nil {
		return nil, fmt.Errorf("scepclient: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-pki-message")
	return c.do(req, operation)
}

func joinQuery(a, b string) string {
	if a == "" {
		return b
	}
	return a + "&" + b
}

func (c *Client) do(req *http.Request, operation string) (*answer, error) {
	client := c.HTTP
	if client == nil {
		client = &http.Client{Timeout: time.Minute, CheckRedirect: checkRedirect}
	}
	resp, err := client.Do(req)
	if err != nil {
		// Without the query, which may be a whole message.
		var urlError *url.Error
		if errors.As(err, &urlError) {
			err = urlError.Err
		}
		return nil, &transportError{operation, req.URL.Host, err}
	}
	defer resp.Body.Close()
	limit := c.maxBytes()
	if resp.StatusCode != http.StatusOK {
		limit = min(limit, 4096)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	c.debug(req.Context(), operation, slog.Int("status", resp.StatusCode), slog.Int("bytes", len(body)))
	if resp.StatusCode != http.StatusOK {
		return nil, c.refused(operation, resp, body)
	}
	if err != nil {
		return nil, &transportError{operation, req.URL.Host, err}
	}
	if int64(len(body)) > limit {
		return nil, fmt.Errorf("scepclient: the answer to %s has more than the %d bytes of Client.MaxBytes", operation, limit)
	}
	return &answer{body, resp.Header.Get("Content-Type")}, nil
}

// refused makes an error of an answer with another status than 200.
func (c *Client) refused(operation string, resp *http.Response, body []byte) error {
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return &UnavailableError{resp.StatusCode, c.retryAfter(resp.Header.Get("Retry-After"))}
	}
	e := &statusError{operation: operation, status: resp.StatusCode}
	if resp.StatusCode/100 == 3 {
		e.location = resp.Header.Get("Location")
	}
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind == "text/plain" {
		if text := strings.TrimSpace(string(body)); text != "" {
			e.text = fmt.Sprintf("%.200q", text)
		}
	}
	return e
}

// retryAfter reads seconds or a date, and takes no more than a day of it.
func (c *Client) retryAfter(s string) time.Duration {
	var d time.Duration
	if n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 31); err == nil {
		d = time.Duration(n) * time.Second
	} else if t, err := http.ParseTime(s); err == nil {
		d = t.Sub(c.now()).Round(time.Second)
	}
	return min(max(d, 0), 24*time.Hour)
}

// checkRedirect keeps to the host and the scheme, and never follows with a message.
func checkRedirect(req *http.Request, via []*http.Request) error {
	first := via[0]
	message := first.Method != http.MethodGet || first.URL.Query().Get("operation") == "PKIOperation"
	if message || len(via) > 3 || req.URL.Host != first.URL.Host || req.URL.Scheme != first.URL.Scheme {
		return http.ErrUseLastResponse
	}
	return nil
}

// A transportError says that no answer came.
type transportError struct {
	operation string
	host      string
	err       error
}

func (e *transportError) Error() string {
	return fmt.Sprintf("scepclient: no answer to %s from %s: %v", e.operation, e.host, e.err)
}

func (e *transportError) Unwrap() error { return e.err }
