package scep

import (
	"net/http"
	"sync/atomic"
)

// A Switch is an [http.Handler] that hands each request to the [Handler] it holds, which can be
// replaced while requests are under way: each is answered by the one that it began with. The zero
// Switch holds none and answers 503.
//
// Keys, certificates and rules of a Handler never change; to change them, make another Handler and
// set it. A change of the CA takes three steps, some weeks apart, over one depot and under one
// Config.Profile:
//
//  1. Config{CA: old, ...}: before.
//  2. Config{CA: old, Next: next, ...}: devices learn of the next CA by GetNextCACert and may
//     enrol and renew with it; all others go on with the old one.
//  3. Config{CA: next, PastRA: {old}, ...}, or with RAs of their own, PastRA: {old RA} and
//     PastCA: {old}: GetCACert has the next CA. What is addressed to the old one, it still issues.
//
// When the old key is to be used no more, drop it from PastRA, and leave the old CA in PastCA
// without its key as long as certificates of it are to be renewed.
//
// A device may get its answer to GetCACert from one Handler and send its request to another: that
// is why step 3 has PastRA. Back from step 3 to 2 is possible in the same way. Where replicas of a
// server take step 2 one after another, first give all of them the next CA as a PastRA, or its RA as
// a PastRA and it as a PastCA: then each serves those who have learned of it from another. While two
// Handlers are at work, each has its own Config.Limits.
type Switch struct{ h atomic.Pointer[Handler] }

// NewSwitch returns a Switch that holds h.
func NewSwitch(h *Handler) *Switch {
	s := new(Switch)
	s.h.Store(h)
	return s
}

// Set replaces the Handler for the requests to come, and returns the one before; either may be
// nil. Requests that the one before has begun it brings to an end, with its keys and its depot:
// close these only when they are done, as after [http.Server.Shutdown].
func (s *Switch) Set(h *Handler) (old *Handler) { return s.h.Swap(h) }

// Handler returns the Handler for the next request, or nil.
func (s *Switch) Handler() *Handler { return s.h.Load() }

// ServeHTTP implements [http.Handler].
func (s *Switch) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := s.h.Load(); h != nil {
		h.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Retry-After", "10")
	http.Error(w, "service unavailable", http.StatusServiceUnavailable)
}
