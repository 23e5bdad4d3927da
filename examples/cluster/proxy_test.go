package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestProxy has one replica that is not there, one that dies with each request in its hands, and
// one that answers.
func TestProxy(t *testing.T) {
	message := bytes.Repeat([]byte("message "), 8000)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	dying := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Length", "10")
		w.Write([]byte("half"))
		panic(http.ErrAbortHandler)
	}))
	defer dying.Close()
	asked := 0
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		body, _ := io.ReadAll(r.Body)
		if !bytes.Equal(body, message) || r.Method != http.MethodPost || r.URL.String() != "/scep?operation=PKIOperation" || r.Header.Get("Content-Type") != "application/x-pki-message" {
			t.Errorf("%s %s with %d bytes of %q", r.Method, r.URL, len(body), r.Header.Get("Content-Type"))
		}
		w.Header().Set("Content-Type", "text/x-answer")
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprint(w, "later")
	}))
	defer good.Close()

	p := newProxy(3)
	for i, s := range []*httptest.Server{gone, dying, good} {
		p.set(i, s.Listener.Addr().String())
	}
	front := httptest.NewServer(p)
	defer front.Close()
	post := func(body []byte) (int, string, http.Header) {
		t.Helper()
		res, err := http.Post(front.URL+"/scep?operation=PKIOperation", "application/x-pki-message", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(text), res.Header
	}
	for range 3 { // each is the first in turn
		if status, text, h := post(message); status != 503 || text != "later" || h.Get("Retry-After") != "7" || h.Get("Content-Type") != "text/x-answer" {
			t.Errorf("%d %q %v", status, text, h)
		}
	}
	if asked != 3 || p.movedOn.Load() != 3 || p.nobody.Load() != 0 {
		t.Errorf("the good one was asked %d times, %d went on, %d found nobody", asked, p.movedOn.Load(), p.nobody.Load())
	}
	if status, _, _ := post(make([]byte, maxBody+1)); status != http.StatusRequestEntityTooLarge {
		t.Errorf("a request that is too large: %d", status)
	}
	p.set(2, "")
	if status, text, h := post(message); status != 503 || !strings.Contains(text, "no replica") || h.Get("Retry-After") == "" || p.nobody.Load() != 1 {
		t.Errorf("without a replica: %d %q %v", status, text, h)
	}
}
