package status_test

import (
	"io"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep/sceptest"
	"github.com/scepkit/scepkit/scep/status"
)

func get(t testing.TB, url string, header map[string]string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, body
}

// TestMemory makes CRLs of a million certificates, twice, in one piece and in shards, and looks at
// how much memory that takes at its highest.
func TestMemory(t *testing.T) {
	n, limit := 1_000_000, uint64(200<<20)
	if testing.Short() || raceEnabled {
		n = 200_000
	}
	ca := sceptest.NewCA(t)
	for _, c := range []status.CRLConfig{
		{Issuer: ca, Depot: revocations{n: n, at: time.Now()}},
		{Issuer: ca, Depot: revocations{n: n, at: time.Now()}, Shards: 64, URL: "http://pki.example/{n}.crl"},
	} {
		runtime.GC()
		var before runtime.MemStats
		runtime.ReadMemStats(&before)
		var highest atomic.Uint64
		done, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			for {
				var now runtime.MemStats
				runtime.ReadMemStats(&now)
				highest.Store(max(highest.Load(), now.HeapAlloc))
				select {
				case <-done:
					return
				case <-time.After(2 * time.Millisecond):
				}
			}
		}()
		crl := newCRL(t, c)
		started := time.Now()
		for range 2 {
			crl.Renew()
			if err := crl.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		took := time.Since(started)
		close(done)
		<-ended
		runtime.GC()
		var after runtime.MemStats
		runtime.ReadMemStats(&after)
		used := highest.Load() - min(before.HeapAlloc, highest.Load())
		t.Logf("%d certificates in %d shards, twice: %v, at most %d MiB, afterwards %d MiB",
			n, c.Shards, took, used>>20, (after.HeapAlloc-min(before.HeapAlloc, after.HeapAlloc))>>20)
		if used > limit {
			t.Errorf("%d MiB, want at most %d", used>>20, limit>>20)
		}
		runtime.KeepAlive(crl)
	}
}
