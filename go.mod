module github.com/scepkit/scepkit

go 1.26
