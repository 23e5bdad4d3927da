package main

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// maxBody is the size of a request that the proxy keeps to send it again; a SCEP message may have
// 64 KiB.
const maxBody = 128 << 10

// A proxy hands each request to one of the replicas in turn. If that one is not there, or dies
// with the request in its hands, the next one gets the same request. That is safe with SCEP,
// where a request sent again gets the answer that it would have had; it is not with everything
// that goes over HTTP.
type proxy struct {
	transport *http.Transport

	mu       sync.Mutex
	replicas []string // addresses, "" for one that is not there
	next     int

	movedOn, nobody atomic.Int64 // requests that another replica got; that none got
}

func newProxy(replicas int) *proxy {
	return &proxy{
		transport: &http.Transport{
			MaxIdleConnsPerHost:   64,
			ResponseHeaderTimeout: time.Minute, // a replica takes half of that at most
			DisableCompression:    true,
		},
		replicas: make([]string, replicas),
	}
}

// set says where a replica is; "" if nowhere.
func (p *proxy) set(replica int, addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.replicas[replica] = addr
}

// there returns which replicas are there.
func (p *proxy) there() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.replicas)
}

// turn returns the replicas that are there, the one whose turn it is first.
func (p *proxy) turn() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next++
	var turn []string
	for i := range p.replicas {
		if addr := p.replicas[(p.next+i)%len(p.replicas)]; addr != "" {
			turn = append(turn, addr)
		}
	}
	return turn
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		status := http.StatusBadRequest
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			status = http.StatusRequestEntityTooLarge
		}
		http.Error(w, http.StatusText(status), status)
		return
	}
	for i, addr := range p.turn() {
		if i > 0 {
			p.movedOn.Add(1)
		}
		answer, content, err := p.ask(r, addr, body)
		if r.Context().Err() != nil {
			return // the device is gone
		}
		if err != nil {
			continue
		}
		for _, name := range []string{"Content-Type", "Cache-Control", "Retry-After"} {
			if value := answer.Header.Get(name); value != "" {
				w.Header().Set(name, value)
			}
		}
		w.WriteHeader(answer.StatusCode)
		w.Write(content)
		return
	}
	p.nobody.Add(1)
	w.Header().Set("Retry-After", "1")
	http.Error(w, "no replica is there", http.StatusServiceUnavailable)
}

// ask hands a request to one replica, and returns all of its answer.
func (p *proxy) ask(r *http.Request, addr string, body []byte) (*http.Response, []byte, error) {
	url := *r.URL
	url.Scheme, url.Host = "http", addr
	req, err := http.NewRequestWithContext(r.Context(), r.Method, url.String(), bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	for _, name := range []string{"Content-Type", "Accept", "User-Agent"} {
		req.Header[name] = r.Header[name]
	}
	answer, err := p.transport.RoundTrip(req)
	if err != nil {
		return nil, nil, err
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	return answer, content, err
}
