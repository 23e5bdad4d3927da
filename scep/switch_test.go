package scep_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

func TestSwitchEmpty(t *testing.T) {
	h := handler(t, scep.Config{})
	for name, s := range map[string]*scep.Switch{"zero": {}, "nil": scep.NewSwitch(nil)} {
		ask := func() *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/scep?operation=GetCACaps", nil))
			return w
		}
		if w := ask(); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || s.Handler() != nil {
			t.Errorf("%s: HTTP %d, %v", name, w.Code, w.Header())
		}
		if old := s.Set(h); old != nil || s.Handler() != h || ask().Code != http.StatusOK {
			t.Errorf("%s: Set returned %p", name, old)
		}
		if old := s.Set(nil); old != h || ask().Code != http.StatusServiceUnavailable {
			t.Errorf("%s: Set(nil) returned %p", name, old)
		}
	}
}

// TestSwitchUnderWay replaces a Handler while a request is under way: that one answers it.
func TestSwitchUnderWay(t *testing.T) {
	old, next := sceptest.NewCA(t), newNext(t)
	begun, goOn := make(chan bool), make(chan bool)
	sw := scep.NewSwitch(handler(t, scep.Config{CA: old, Challenge: scep.ChallengeFunc(func(context.Context, *scep.Request) error {
		close(begun)
		<-goOn
		return nil
	})}))
	srv := httptest.NewServer(sw)
	defer srv.Close()
	slow := sceptest.NewDevice(srv.URL, sceptest.RSA(0), "slow").To(old.Certificate())
	answered := make(chan *sceptest.Reply)
	go func() { answered <- slow.Send(t, slow.PKCSReq(t)) }()
	<-begun
	sw.Set(handler(t, scep.Config{CA: next}))
	if err := sceptest.NewDevice(srv.URL, sceptest.RSA(1), "quick").Enroll(t).CheckSignatureFrom(next.Certificate()); err != nil {
		t.Error(err)
	}
	close(goOn)
	r := <-answered
	if wantOK(t, r); r.Certificate.CheckSignatureFrom(old.Certificate()) != nil {
		t.Error("not by the CA that it began with")
	}
}
