# amc serve in a container:
#   docker build -t amc-search .
#   docker run --init --shm-size 2g -e AMC_TOKEN="$(openssl rand -hex 16)" -v amc:/data -p 8710:8710 amc-search
FROM python:3.11-slim
WORKDIR /app
COPY . .
RUN pip install --no-cache-dir -c constraints.txt '.[serve]' && useradd --home-dir /data --create-home amc
USER amc
ENV AMC_DATA=/data/service AMC_CACHE=/data/cache
VOLUME /data
EXPOSE 8710
ENTRYPOINT ["amc"]
CMD ["serve", "--host", "0.0.0.0", "--resume"]
